"""MoEUT as a language model, and its dense baseline: ``--arch transformer_lm_moeut_44m`` and other sizes."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import register_model, transformer_lm
from fairseq.models.transformer import DEFAULT_MAX_TARGET_POSITIONS, TransformerConfig

from fairseq_sharing.models.hydra import as_namespace
from fairseq_sharing.models.shared_stack import SharingModel
from fairseq_sharing.models.sharing_options import add_sharing_args, register_size, validate
from fairseq_sharing.moeut.counts import MoECounts
from fairseq_sharing.moeut.options import (
    add_moe_args,
    check_moe,
    check_rotary,
    make_architecture,
    refuse_experts,
    refuse_fixed,
    warn_without_balance,
)
from fairseq_sharing.moeut.stacks import MoEUTDecoder

_STACKS = ("decoder",)


@register_model("transformer_lm_moeut")
class MoEUTLanguageModel(MoECounts, SharingModel, transformer_lm.TransformerLanguageModel):
    """MoEUT: a small group of layers with sparse expert banks, applied repeatedly.

    Source: Csordas et al. 2024, "MoEUT: Mixture-of-Experts Universal Transformers" (arXiv 2405.16039).
    """

    def __init__(self, decoder):
        super().__init__(decoder)
        self.cfg = decoder.cfg
        self.watch_state_dict()

    @classmethod
    def add_args(cls, parser: ArgumentParser) -> None:
        """Add fairseq's language-model flags, the sharing flags and the expert flags."""
        gen_parser_from_dataclass(parser, transformer_lm.TransformerLanguageModelConfig(), delete_default=True)
        add_sharing_args(parser)
        add_moe_args(parser)

    @classmethod
    def build_model(cls, args: Namespace, task):
        """Build the model.

        Args:
            args: fairseq's arguments; missing ones get the defaults of ``transformer_lm_moeut``.
            task: a language-modeling task with its dictionary.

        Raises:
            SharingError: if the options give no layer map or no valid expert banks.
        """
        args = as_namespace(args)
        _architectures.get(getattr(args, "arch", None), transformer_lm_moeut)(args)
        if args.layer_type != "dense":
            warn_without_balance(args)
        if getattr(args, "max_target_positions", None) is None:
            args.max_target_positions = getattr(args, "tokens_per_sample", DEFAULT_MAX_TARGET_POSITIONS)
        embed_tokens = cls.build_embedding(args, task.source_dictionary, args.decoder_input_dim)
        cfg = TransformerConfig.from_namespace(args)
        return cls(MoEUTDecoder(cfg, task.target_dictionary, embed_tokens, no_encoder_attn=True))

    def forward(self, src_tokens, **kwargs):
        """Run the decoder in the selected training precision."""
        with self.training_autocast():
            return super().forward(src_tokens, **kwargs)


def _size(layers: int, unique_layers: int, embed_dim: int, heads: int, head_dim: int, **more) -> dict:
    return {
        "decoder_layers": layers,
        "unique_layers": unique_layers,
        "decoder_embed_dim": embed_dim,
        "decoder_attention_heads": heads,
        "head_dim": head_dim,
        "sharing": "cycle",
        "attention_top_k": 2,
        "expert_dim": 128,
        "bank_init": "normalized",
        **more,
    }


def _dense(layers: int, embed_dim: int, ffn_dim: int, heads: int, head_dim: int) -> dict:
    return {
        "layer_type": "dense",
        "sharing": "none",
        "decoder_layers": layers,
        "decoder_embed_dim": embed_dim,
        "decoder_ffn_embed_dim": ffn_dim,
        "decoder_attention_heads": heads,
        "head_dim": head_dim,
    }


# Source: Csordas et al. 2024, table 3. 728M has the width that was trained (1,280), not that of the released profile.
SIZES = {
    "44m": _size(16, 2, 412, 4, 82, attention_experts=8, ffn_experts=155, ffn_top_k=12, bank_init="normal"),
    "126m": _size(18, 2, 768, 4, 96, attention_experts=10, ffn_experts=254, ffn_top_k=12),
    "244m": _size(18, 2, 1024, 4, 128, attention_experts=10, ffn_experts=387, ffn_top_k=16),
    "319m": _size(24, 3, 1024, 4, 128, attention_experts=10, ffn_experts=338, ffn_top_k=16),
    "728m": _size(36, 4, 1280, 5, 128, attention_experts=13, ffn_experts=467, ffn_top_k=20),
    "1b": _size(36, 4, 1536, 6, 128, attention_experts=12, ffn_experts=565, ffn_top_k=24),
    "dense_44m": _dense(16, 412, 2053, 10, 41),
    "dense_126m": _dense(16, 768, 3072, 16, 48),
    "dense_244m": _dense(18, 1024, 4110, 16, 64),
    "dense_319m": _dense(24, 1024, 4110, 16, 64),
    "dense_728m": _dense(36, 1280, 5120, 20, 64),
    "dense_1b": _dense(36, 1536, 6144, 24, 64),
}
# The paper uses no dropout, no embedding scaling and no tied output embeddings.
_COMMON = {"layer_type": "moeut", "dropout": 0.0, "no_scale_embedding": True, "share_decoder_input_output_embed": False}


def _check(args: Namespace) -> None:
    if args.layer_type == "dense":
        refuse_experts(args)
        check_rotary(args)
        refuse_fixed(args, _STACKS)
    else:
        check_moe(args, _STACKS)
    validate(args, _STACKS)


_architectures = {
    name: register_size(
        "transformer_lm_moeut",
        name,
        make_architecture({**_COMMON, **size}, transformer_lm.base_lm_architecture),
        _check,
    )
    for name, size in {
        "transformer_lm_moeut": SIZES["44m"],
        **{f"transformer_lm_moeut_{name}": size for name, size in SIZES.items()},
    }.items()
}
transformer_lm_moeut = _architectures["transformer_lm_moeut"]
