"""Options of models with expert banks: flags, validation and layer sizes."""

import logging
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.dataclass.utils import gen_parser_from_dataclass

from fairseq_sharing.component_sharing import COMPONENT_OPTIONS, CROSS_STACK_OPTION
from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import STRATEGIES
from fairseq_sharing.models.structure_checks import STRUCTURES
from fairseq_sharing.moeut.experts import BACKENDS, ExpertOptions
from fairseq_sharing.moeut.peri_layer import LayerSizes
from fairseq_sharing.moeut.rotary import default_width
from fairseq_sharing.options import flag_of, option_field, refuse

logger = logging.getLogger(__name__)


@dataclass
class MoEOptions(FairseqDataclass):
    """Options that ``--arch transformer_moeut`` and ``transformer_lm_moeut`` add to those of fairseq."""

    # fairseq derives the flags from these annotations at run time: use Optional and no postponed annotations.

    head_dim: Optional[int] = option_field(
        "width of an attention head; the number of heads times this need not be the model's width"
    )
    rotary_dim: Optional[int] = option_field("rotary channels of a head, an even number (default: half of the head)")
    attention_experts: Optional[int] = option_field("number of value and output matrices per head")
    attention_top_k: Optional[int] = option_field("value and output matrices that a token uses per head")
    ffn_experts: Optional[int] = option_field("number of experts of a feed-forward layer")
    encoder_ffn_experts: Optional[int] = option_field("number of experts of a feed-forward layer (encoder only)")
    decoder_ffn_experts: Optional[int] = option_field("number of experts of a feed-forward layer (decoder only)")
    ffn_top_k: Optional[int] = option_field("feed-forward experts that a token uses")
    expert_dim: Optional[int] = option_field("hidden width of a feed-forward expert")
    expert_dropout: float = option_field("probability that an expert cannot be chosen for a token during training", 0.0)
    router_init: ChoiceEnum(["normal", "equal_rows"]) = option_field(
        "initial router weights: normal, or rows of equal length, so that no expert has an advantage", "normal"
    )
    bank_init: ChoiceEnum(["normal", "normalized"]) = option_field(
        "initial value and output matrices: normal, or normalized: each entry has the same norm over all experts",
        "normal",
    )
    expert_backend: ChoiceEnum(["auto", *BACKENDS]) = option_field(
        "implementation of the expert banks; auto chooses by device, bank, batch and precision; triton requires an "
        "NVIDIA GPU, Ampere or newer",
        "auto",
    )
    keep_gathered: bool = option_field(
        "keep each expert's inputs for the backward pass instead of gathering them again: needs more memory", False
    )


# Required values of fairseq's flags, and the reasons.
_FIXED = {
    "activation_fn": ("relu", "the residual stream has no fixed scale, and only ReLU preserves that"),
    "activation_dropout": (0.0, "experts have no internal dropout; use --expert-dropout"),
    "layernorm_embedding": (False, "the residual stream is never normalized"),
    "cross_self_attention": (False, "self-attention and cross-attention are separate"),
    "no_cross_attention": (False, "every decoder layer attends to the encoder"),
    "adaptive_input": (False, "all embeddings have the same width"),
    "character_embeddings": (False, "embeddings are per word"),
    "depth_signal": ("off", "layers distinguish their repetitions by the residual stream alone"),
    "position_per_depth": (False, "positions are rotary"),
    **dict.fromkeys(STRUCTURES, (None, "it changes the layers and embeddings of fairseq")),
    "act": ("off", "all layers are applied to every token"),
    **{
        option: (None, "a set of experts and its router belong together; use --sharing and --sharing-scope")
        for option in (*COMPONENT_OPTIONS, CROSS_STACK_OPTION)
    },
    "depth_lora": (None, "experts are banks of matrices; use --sharing none for matrices per depth"),
    "depth_scale": (False, "experts are banks of matrices"),
    "depth_bias": (False, "layers have no biases"),
    "depth_norm": (False, "use --sharing-scope"),
    "fast": (False, "it replaces fairseq's dropout and attention only"),
    "compile": (False, "it compiles fairseq's layers only"),
    "offload_activations": (False, "use --checkpoint-activations"),
    "base_layers": (0, "layers already contain expert banks"),
    "quant_noise_pq": (0, "expert banks are not linear layers"),
    "quant_noise_scalar": (0, "expert banks are not linear layers"),
    **{
        f"scale_{name}": (False, "layers have only the parameters of the paper")
        for name in ("fc", "attn", "heads", "resids")
    },
}
_FIXED_OF_STACK = {
    "learned_pos": (False, "positions are rotary"),
    "layerdrop": (0, "all layers are applied"),
    "layers_to_keep": (None, "all layers are applied"),
}


def add_moe_args(parser: ArgumentParser) -> None:
    """Add the flags of ``MoEOptions`` to a model's group of fairseq's parser."""
    gen_parser_from_dataclass(parser, MoEOptions(), delete_default=True)


def fill(args: Namespace, sizes: dict[str, Any]) -> None:
    """Set missing arguments to the values of a size, and other missing expert options to their defaults.

    Args:
        args: fairseq's arguments.
        sizes: values by name. ``unique_layers`` applies to strategies with a free choice of M.
    """
    unique_layers = sizes.get("unique_layers")
    given = getattr(args, "ffn_experts", None) is not None
    for name, value in sizes.items():
        # A value given for both stacks overrides a size's value for one stack.
        skip = name == "unique_layers" or (given and name.endswith("coder_ffn_experts"))
        if not skip and getattr(args, name, None) is None:
            setattr(args, name, value)
    strategy = STRATEGIES.get(args.sharing)
    if strategy and not strategy.fixed_unique_layers and getattr(args, "unique_layers", None) is None:
        args.unique_layers = unique_layers
    for option in fields(MoEOptions):
        if option.name != "_name" and getattr(args, option.name, None) is None:
            setattr(args, option.name, option.default)
    if args.rotary_dim is None:
        args.rotary_dim = default_width(args.head_dim)
    # Positions are rotary, and the output of a stack is normalized.
    args.no_token_positional_embeddings = True
    args.encoder_normalize_before = args.decoder_normalize_before = True


def make_architecture(sizes: dict[str, Any], base: Callable[[Namespace], None]) -> Callable[[Namespace], None]:
    """Return the function of an architecture: its sizes, then the defaults of fairseq's architecture."""

    def architecture(args: Namespace) -> None:
        fill(args, sizes)
        base(args)

    return architecture


def check_moe(args: Namespace, stacks: tuple[str, ...]) -> None:
    """Check the options of the expert banks and reject unsupported options of fairseq.

    Raises:
        SharingError: with the flag, the allowed values and the nearest allowed value.
    """
    _at_most(args, "attention_top_k", args.attention_experts, "--attention-experts")
    for stack in stacks:
        name = f"{stack}_ffn_experts" if getattr(args, f"{stack}_ffn_experts") is not None else "ffn_experts"
        _at_least_one(args, name)
        _at_most(args, "ffn_top_k", getattr(args, name), flag_of(name))
    for name in ("head_dim", "attention_experts", "expert_dim"):
        _at_least_one(args, name)
    check_rotary(args)
    if not 0 <= args.expert_dropout < 1:
        raise SharingError(
            f"--expert-dropout must be at least 0 and below 1, got {args.expert_dropout}; "
            f"nearest: {0.0 if args.expert_dropout < 0 else 0.9}"
        )
    refuse_fixed(args, stacks)


def warn_without_balance(args: Namespace) -> None:
    """Warn if the criterion does not balance the usage of experts."""
    criterion = getattr(args, "criterion", None)
    if criterion not in (None, "moe_cross_entropy"):
        logger.warning(
            f"--criterion {criterion} does not balance the usage of experts; use --criterion moe_cross_entropy, which "
            "supports --label-smoothing"
        )


def check_rotary(args: Namespace) -> None:
    """Check the number of rotated channels of a head.

    Raises:
        SharingError: if the number is odd or out of range.
    """
    if args.rotary_dim % 2 or not 0 <= args.rotary_dim <= args.head_dim:
        nearest = min(max(args.rotary_dim, 0), args.head_dim) // 2 * 2
        raise SharingError(
            f"--rotary-dim must be even and between 0 and --head-dim ({args.head_dim}), got {args.rotary_dim}; "
            f"nearest: {nearest}"
        )


def refuse_experts(args: Namespace) -> None:
    """Reject expert options for a dense model.

    Raises:
        SharingError: with the flag.
    """
    banks = ("attention_experts", "attention_top_k", "ffn_experts", "decoder_ffn_experts", "ffn_top_k", "expert_dim")
    for name in banks:
        refuse(args, name, "its layers are dense", None)


def refuse_fixed(args: Namespace, stacks: tuple[str, ...]) -> None:
    """Reject options of fairseq's layers that these layers do not support.

    Raises:
        SharingError: with the flag and the allowed value.
    """
    if str(getattr(args, "depth_loss", "sampled")) == "aligned":
        raise SharingError("--depth-loss aligned is not supported by MoEUT; allowed: sampled")
    if getattr(args, "admin", "off") != "off":
        raise SharingError(f"--admin {args.admin} requires post-norm layers; allowed: off")
    for name, (allowed, reason) in _FIXED.items():
        refuse(args, name, reason, allowed)
    for stack in stacks:
        for name, (allowed, reason) in _FIXED_OF_STACK.items():
            refuse(args, f"{stack}_{name}", reason, allowed)


def layer_sizes(cfg: Any, stack: str) -> LayerSizes:
    """Return the layer sizes of a stack.

    Args:
        cfg: fairseq's arguments or its TransformerConfig.
        stack: ``encoder`` or ``decoder``.
    """
    own = getattr(cfg, f"{stack}_ffn_experts")
    return LayerSizes(
        embed_dim=getattr(cfg, f"{stack}_embed_dim"),
        heads=getattr(cfg, f"{stack}_attention_heads"),
        head_dim=cfg.head_dim,
        attention_experts=cfg.attention_experts,
        attention_top_k=cfg.attention_top_k,
        ffn_experts=cfg.ffn_experts if own is None else own,
        ffn_top_k=cfg.ffn_top_k,
        expert_dim=cfg.expert_dim,
        rotary_dim=cfg.rotary_dim,
    )


def expert_options(cfg: Any) -> ExpertOptions:
    """Return the options that all expert banks have in common."""
    return ExpertOptions(
        backend=None if cfg.expert_backend == "auto" else str(cfg.expert_backend),
        keep_gathered=cfg.keep_gathered,
        dropout=cfg.expert_dropout,
        equal_router_rows=cfg.router_init == "equal_rows",
        normalized_banks=cfg.bank_init == "normalized",
    )


def _at_least_one(args: Namespace, name: str) -> None:
    if getattr(args, name) < 1:
        raise SharingError(f"{flag_of(name)} must be at least 1, got {getattr(args, name)}; nearest: 1")


def _at_most(args: Namespace, name: str, high: int, high_flag: str) -> None:
    value = getattr(args, name)
    if not 1 <= value <= high:
        nearest = min(max(value, 1), max(high, 1))
        raise SharingError(
            f"{flag_of(name)} must be between 1 and {high_flag} ({high}), got {value}; nearest: {nearest}"
        )
