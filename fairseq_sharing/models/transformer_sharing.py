"""fairseq's encoder-decoder Transformer with layer sharing: ``--arch transformer_sharing``."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from fairseq.models import register_model
from fairseq.models.transformer import transformer_legacy
from fairseq.models.transformer.transformer_decoder import TransformerDecoderBase
from fairseq.models.transformer.transformer_encoder import TransformerEncoderBase
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase, TransformerEncoderLayerBase

from fairseq_sharing.adapters.kinds import DepthKinds
from fairseq_sharing.adapters.layer import add_depth_parameters
from fairseq_sharing.admin.layers import with_checkpointing
from fairseq_sharing.depths.stack import DepthDecoder, DepthEncoder
from fairseq_sharing.factorized_embedding.embedding import FactorizedEmbedding, tie_output_factor
from fairseq_sharing.fast.attention import one_pass
from fairseq_sharing.models.hydra import as_namespace
from fairseq_sharing.models.layer_classes import layer_class
from fairseq_sharing.models.shared_stack import SharedStack, SharingModel
from fairseq_sharing.models.sharing_options import add_sharing_args, register_size, stack_sharing, validate

# fairseq's decoder returns the attention weights of one layer, by default the last; translation losses ignore them.
_NO_LAYER = -1


class SharedTransformerEncoder(SharedStack, DepthEncoder, TransformerEncoderBase):
    """fairseq's Transformer encoder with layers tied by the encoder's layer map."""

    def __init__(self, cfg, dictionary, embed_tokens, return_fc=False):
        self.begin_sharing(stack_sharing(cfg, "encoder"))
        super().__init__(cfg, dictionary, embed_tokens, return_fc=return_fc)
        self.add_depth_steps(cfg, "encoder")

    def build_encoder_layer(self, cfg):
        """Build the next layer and tie it to its owner."""
        return self.build_tied(lambda: self._new_layer(cfg))

    def _new_layer(self, cfg):
        layer, kinds = layer_class(cfg, "encoder"), DepthKinds.read(cfg)
        if layer is TransformerEncoderLayerBase and not kinds:
            return super().build_encoder_layer(cfg)
        return with_checkpointing(add_depth_parameters(layer(cfg, self.return_fc), kinds), cfg)


class SharedTransformerDecoder(SharedStack, DepthDecoder, TransformerDecoderBase):
    """fairseq's Transformer decoder with layers tied by the decoder's layer map."""

    def __init__(self, cfg, dictionary, embed_tokens, no_encoder_attn=False, output_projection=None):
        self.begin_sharing(stack_sharing(cfg, "decoder"))
        super().__init__(cfg, dictionary, embed_tokens, no_encoder_attn, output_projection)
        tie_output_factor(self)
        self.add_depth_steps(cfg, "decoder")

    def build_decoder_layer(self, cfg, no_encoder_attn=False):
        """Build the next layer and tie it to its owner."""
        return self.build_tied(lambda: self._new_layer(cfg, no_encoder_attn))

    def _new_layer(self, cfg, no_encoder_attn):
        layer, kinds = layer_class(cfg, "decoder"), DepthKinds.read(cfg)
        if layer is TransformerDecoderLayerBase and not kinds:
            return super().build_decoder_layer(cfg, no_encoder_attn)
        return with_checkpointing(add_depth_parameters(layer(cfg, no_encoder_attn), kinds), cfg)


@register_model("transformer_sharing")
class TransformerSharingModel(SharingModel, transformer_legacy.TransformerModel):
    """fairseq's ``transformer`` with layer sharing in both stacks.

    Source: Takase & Kiyono 2023, Lessons on Parameter Sharing across Layers in Transformers.
    """

    def __init__(self, args, encoder, decoder):
        super().__init__(args, encoder, decoder)
        self.watch_state_dict()
        self.start_admin(args.admin)
        self.start_fast(args)

    @classmethod
    def add_args(cls, parser: ArgumentParser) -> None:
        """Add fairseq's Transformer flags and the sharing flags."""
        transformer_legacy.TransformerModel.add_args(parser)
        add_sharing_args(parser)

    @classmethod
    def build_model(cls, args: Namespace, task):
        """Build the model.

        Args:
            args: fairseq's arguments; missing ones get the defaults of ``transformer_sharing``.
            task: a translation task with both dictionaries.

        Raises:
            SharingError: if the options give no layer map or cannot be combined with it.
        """
        args = as_namespace(args)
        transformer_sharing(args)
        return super().build_model(args, task)

    @classmethod
    def build_embedding(cls, cfg, dictionary, embed_dim, path=None):
        """Build embeddings, factorized if the options say so."""
        if cfg.embedding_factor_dim is None:
            return super().build_embedding(cfg, dictionary, embed_dim, path)
        return FactorizedEmbedding(len(dictionary), embed_dim, cfg.embedding_factor_dim, dictionary.pad())

    @classmethod
    def build_encoder(cls, cfg, src_dict, embed_tokens):
        """Build the shared encoder."""
        return SharedTransformerEncoder(cfg, src_dict, embed_tokens)

    @classmethod
    def build_decoder(cls, cfg, tgt_dict, embed_tokens):
        """Build the shared decoder."""
        return SharedTransformerDecoder(cfg, tgt_dict, embed_tokens, no_encoder_attn=cfg.no_cross_attention)

    def forward(self, *args, **kwargs):
        """Run fairseq's forward pass in the selected training precision."""
        if self.training and self.cfg.fast:
            kwargs.setdefault("alignment_layer", _NO_LAYER)
        with self.training_autocast():
            self.profile_admin(lambda: super(TransformerSharingModel, self).forward(*args, **kwargs))
            with one_pass():
                return self.with_ponder(super().forward(*args, **kwargs))


_SIZES = {
    "transformer_sharing": transformer_legacy.base_architecture,
    "transformer_sharing_tiny": transformer_legacy.tiny_architecture,
    "transformer_sharing_iwslt_de_en": transformer_legacy.transformer_iwslt_de_en,
    "transformer_sharing_wmt_en_de": transformer_legacy.transformer_wmt_en_de,
    "transformer_sharing_wmt_en_de_big": transformer_legacy.transformer_wmt_en_de_big,
}
_architectures = {name: register_size("transformer_sharing", name, size, validate) for name, size in _SIZES.items()}
transformer_sharing = _architectures["transformer_sharing"]
