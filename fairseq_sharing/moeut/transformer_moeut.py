"""MoEUT for translation: ``--arch transformer_moeut`` and sizes with the parameter counts of dense Transformers."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from fairseq.models import register_model
from fairseq.models.transformer import transformer_legacy

from fairseq_sharing.errors import SharingError
from fairseq_sharing.models.hydra import as_namespace
from fairseq_sharing.models.shared_stack import SharingModel
from fairseq_sharing.models.sharing_options import add_sharing_args, register_size, validate
from fairseq_sharing.moeut.counts import MoECounts
from fairseq_sharing.moeut.options import add_moe_args, check_moe, make_architecture, warn_without_balance
from fairseq_sharing.moeut.stacks import MoEUTDecoder, MoEUTEncoder

_STACKS = ("encoder", "decoder")


@register_model("transformer_moeut")
class MoEUTModel(MoECounts, SharingModel, transformer_legacy.TransformerModel):
    """Encoder and decoder with MoEUT layers; decoder layers attend to the encoder's output with a separate SwitchHead.

    Source: the layers are those of Csordas et al. 2024, MoEUT, a language model. The encoder, cross-attention and the
    sizes are this project's.
    """

    def __init__(self, args, encoder, decoder):
        super().__init__(args, encoder, decoder)
        self.watch_state_dict()

    @classmethod
    def add_args(cls, parser: ArgumentParser) -> None:
        """Add fairseq's Transformer flags, the sharing flags and the expert flags."""
        transformer_legacy.TransformerModel.add_args(parser)
        add_sharing_args(parser)
        add_moe_args(parser)

    @classmethod
    def build_model(cls, args: Namespace, task):
        """Build the model.

        Args:
            args: fairseq's arguments; missing ones get the defaults of ``transformer_moeut``.
            task: a translation task with both dictionaries.

        Raises:
            SharingError: if the options give no layer map or no valid expert banks.
        """
        args = as_namespace(args)
        _architectures.get(getattr(args, "arch", None), transformer_moeut)(args)
        warn_without_balance(args)
        return super().build_model(args, task)

    @classmethod
    def build_encoder(cls, cfg, src_dict, embed_tokens):
        """Build the encoder."""
        return MoEUTEncoder(cfg, src_dict, embed_tokens)

    @classmethod
    def build_decoder(cls, cfg, tgt_dict, embed_tokens):
        """Build the decoder."""
        return MoEUTDecoder(cfg, tgt_dict, embed_tokens)

    def forward(self, src_tokens, src_lengths, prev_output_tokens, return_usage=False, features_only=False, **unused):
        """Run both stacks in the selected training precision.

        Args:
            src_tokens: (B, S).
            src_lengths: unused; fairseq passes it.
            prev_output_tokens: (B, T).
            return_usage: return the usage of the routers' experts.
            features_only: return the last layer's output instead of scores.
            unused: other arguments of fairseq, for attention weights.

        Returns:
            Scores, (B, T, vocabulary), and a dict with ``usage`` by stack and layer if requested.
        """
        with self.training_autocast():
            encoded = self.encoder(src_tokens, return_usage=return_usage)
            return self.decoder(
                prev_output_tokens, encoder_out=encoded, features_only=features_only, return_usage=return_usage
            )


def _size(layers: int, embed_dim: int, heads: int, head_dim: int, experts: tuple[int, int], **more) -> dict:
    both = {"layers": layers, "attention_heads": heads}
    return {
        "encoder_embed_dim": embed_dim,  # also the default of the decoder, as in fairseq
        **{f"{stack}_{name}": value for stack in _STACKS for name, value in both.items()},
        "encoder_ffn_experts": experts[0],
        "decoder_ffn_experts": experts[1],
        "head_dim": head_dim,
        "attention_experts": 4,
        "attention_top_k": 2,
        "sharing": "cycle",
        "unique_layers": 2,
        **more,
    }


_BASE = _size(6, 512, 2, 128, (62, 76), expert_dim=128, ffn_top_k=8)
# Each has the same number of parameters, within 1%, as the stacks of the dense fairseq Transformer in the comment.
SIZES = {
    "transformer_moeut": _BASE,
    "transformer_moeut_wmt_en_de": _BASE,  # d 512, ffn 2,048, 6 + 6 layers
    "transformer_moeut_iwslt_de_en": _size(6, 512, 2, 128, (38, 52), expert_dim=128, ffn_top_k=4),  # ffn 1,024
    "transformer_moeut_small": _size(4, 256, 2, 64, (19, 22), expert_dim=128, ffn_top_k=4),  # d 256, ffn 1,024, 4 + 4
    # Also the same number of operations: d 128, ffn 256, 4 + 4 layers.
    "transformer_moeut_tiny": _size(4, 128, 2, 32, (11, 14), expert_dim=64, ffn_top_k=6),
}


def _check(args: Namespace) -> None:
    if args.encoder_embed_dim != args.decoder_embed_dim:
        raise SharingError(
            f"--decoder-embed-dim must equal --encoder-embed-dim ({args.encoder_embed_dim}) for cross-attention, "
            f"got {args.decoder_embed_dim}; nearest: {args.encoder_embed_dim}"
        )
    check_moe(args, _STACKS)
    validate(args, _STACKS)


_architectures = {
    name: register_size(
        "transformer_moeut", name, make_architecture(size, transformer_legacy.base_architecture), _check
    )
    for name, size in SIZES.items()
}
transformer_moeut = _architectures["transformer_moeut"]
