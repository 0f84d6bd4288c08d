"""fairseq's Transformer language model with layer sharing: ``--arch transformer_lm_sharing``."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import fields

from fairseq import options
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import register_model, transformer_lm
from fairseq.models.transformer import DEFAULT_MAX_TARGET_POSITIONS, TransformerConfig
from fairseq.modules import AdaptiveInput

from fairseq_sharing.errors import SharingError
from fairseq_sharing.factorized_embedding.embedding import FactorizedEmbedding
from fairseq_sharing.fast.attention import one_pass
from fairseq_sharing.models.hydra import as_namespace
from fairseq_sharing.models.shared_stack import SharingModel
from fairseq_sharing.models.sharing_options import add_sharing_args, register_size, validate
from fairseq_sharing.models.transformer_sharing import SharedTransformerDecoder


@register_model("transformer_lm_sharing")
class TransformerLanguageModelSharing(SharingModel, transformer_lm.TransformerLanguageModel):
    """fairseq's ``transformer_lm`` with layer sharing, and with its defaults.

    Source: Takase & Kiyono 2023, Section 4.4 (WikiText-103).
    """

    def __init__(self, decoder):
        super().__init__(decoder)
        self.cfg = decoder.cfg
        self.watch_state_dict()
        self.start_fast(self.cfg)

    @classmethod
    def add_args(cls, parser: ArgumentParser) -> None:
        """Add fairseq's language-model flags and the sharing flags."""
        gen_parser_from_dataclass(parser, transformer_lm.TransformerLanguageModelConfig(), delete_default=True)
        add_sharing_args(parser)

    @classmethod
    def build_model(cls, args: Namespace, task):
        """Build the model.

        Args:
            args: fairseq's arguments; missing ones get the defaults of ``transformer_lm_sharing``.
            task: a language-modeling task with its dictionary.

        Raises:
            SharingError: if the options give no layer map or cannot be combined with it.
        """
        args = as_namespace(args)
        transformer_lm_sharing(args)
        if args.decoder_layers_to_keep:
            args.decoder_layers = len(args.decoder_layers_to_keep.split(","))
        if getattr(args, "max_target_positions", None) is None:
            args.max_target_positions = getattr(args, "tokens_per_sample", DEFAULT_MAX_TARGET_POSITIONS)
        embed_tokens = cls._build_inputs(args, task.source_dictionary)
        cfg = TransformerConfig.from_namespace(args)
        return cls(SharedTransformerDecoder(cfg, task.target_dictionary, embed_tokens, no_encoder_attn=True))

    @classmethod
    def _build_inputs(cls, args: Namespace, dictionary):
        if args.embedding_factor_dim is not None:
            return FactorizedEmbedding(
                len(dictionary), args.decoder_embed_dim, args.embedding_factor_dim, dictionary.pad()
            )
        if not args.adaptive_input:
            return cls.build_embedding(args, dictionary, args.decoder_input_dim)
        return AdaptiveInput(
            len(dictionary),
            dictionary.pad(),
            args.decoder_input_dim,
            args.adaptive_input_factor,
            args.decoder_embed_dim,
            options.eval_str_list(args.adaptive_input_cutoff, type=int),
            args.quant_noise_pq,
            args.quant_noise_pq_block_size,
        )

    def forward(self, src_tokens, **kwargs):
        """Run fairseq's forward pass in the selected training precision."""
        with self.training_autocast(), one_pass():
            return self.with_ponder(super().forward(src_tokens, **kwargs))


def _stock_defaults(args: Namespace) -> None:
    """Complete the arguments as fairseq does for ``--arch transformer_lm``: post-norm, and 512 for each width.

    fairseq's ``base_lm_architecture`` sets other defaults; only its larger architectures use it.
    """
    for option in fields(transformer_lm.TransformerLanguageModelConfig):
        # Options of the task, which start with a dollar sign, are not those of the model.
        if not hasattr(args, option.name) and not str(option.default).startswith("$"):
            setattr(args, option.name, option.default)


def _check(args: Namespace) -> None:
    if getattr(args, "admin", "off") != "off":
        raise SharingError(f"--admin {args.admin} is not supported by transformer_lm_sharing; allowed: off")
    validate(args, ("decoder",))
    if args.character_embeddings:
        raise SharingError(
            "--character-embeddings is not supported by transformer_lm_sharing; allowed: --adaptive-input"
        )
    if args.tie_adaptive_weights:
        if not args.adaptive_input:
            raise SharingError("--tie-adaptive-weights requires --adaptive-input")
        if args.decoder_input_dim != args.decoder_output_dim:
            raise SharingError(
                "--tie-adaptive-weights requires equal --decoder-input-dim and --decoder-output-dim, "
                f"got {args.decoder_input_dim} and {args.decoder_output_dim}"
            )
        for name in ("cutoff", "factor"):
            given, softmax = getattr(args, f"adaptive_input_{name}"), getattr(args, f"adaptive_softmax_{name}")
            if given != softmax:
                raise SharingError(
                    f"--tie-adaptive-weights requires equal --adaptive-input-{name} and --adaptive-softmax-{name}, "
                    f"got {given} and {softmax}"
                )


_SIZES = {
    "transformer_lm_sharing": _stock_defaults,
    "transformer_lm_sharing_big": transformer_lm.transformer_lm_big,
    "transformer_lm_sharing_wiki103": transformer_lm.transformer_lm_baevski_wiki103,
}
_architectures = {name: register_size("transformer_lm_sharing", name, size, _check) for name, size in _SIZES.items()}
transformer_lm_sharing = _architectures["transformer_lm_sharing"]
