"""Sharing options of all models in this package: flags, validation and defaults."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Optional

from fairseq.dataclass import ChoiceEnum
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import register_model_architecture
from fairseq.models.transformer.transformer_config import EncDecBaseConfig, TransformerConfig
from omegaconf import DictConfig

from fairseq_sharing.adapters.kinds import validate_depth
from fairseq_sharing.adapters.options import AdapterOptions
from fairseq_sharing.checkpoints.materialize import FUSED
from fairseq_sharing.component_sharing import BY_DEPTH, SPANS, resolve_sharing
from fairseq_sharing.depths.options import DepthOptions, validate_depths
from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import PARTS, SCOPES, SHARING_CHOICES, STACKS, StackSharing
from fairseq_sharing.models.component_options import refuse_unlike_stacks
from fairseq_sharing.models.hydra import flags_of
from fairseq_sharing.models.presets import apply_preset
from fairseq_sharing.models.structure_checks import check_structures
from fairseq_sharing.options import option_field, refuse

_SHARING = "which layers share parameters: " + ", ".join(SHARING_CHOICES)
_UNIQUE = "M, the number of parameter sets; required by sequence, cycle and cycle_rev"
_MAP = "layer map for custom: one label per layer; layers with equal labels share, for example 0,1,2,2,1,0"
_SCOPE = "what is shared: layer (the whole layer), or a comma-separated list of " + ", ".join(SCOPES[1:])
_COMPONENTS = (
    "maps of single components, which override --sharing for them: COMPONENT=STRATEGY pairs, separated by semicolons, "
    f"for {', '.join(PARTS['decoder'])}; a strategy is none, universal, sandwich, sequence:M, cycle:M, cycle_rev:M or "
    "N labels, for example ffn=universal;self_attn=cycle:2"
)
_PONDER_CRITERION = "label_smoothed_cross_entropy_with_ponder"
_ONLY = " ({} only; overrides the flag for both stacks)"


@dataclass
class SharingOptions(AdapterOptions):
    """Options that ``--arch transformer_sharing`` and related architectures add to those of fairseq."""

    # fairseq derives the flags from these annotations at run time: use Optional and no postponed annotations.

    sharing: Optional[str] = option_field(_SHARING)
    unique_layers: Optional[int] = option_field(_UNIQUE)
    layer_map: Optional[str] = option_field(_MAP)
    sharing_scope: Optional[str] = option_field(_SCOPE)
    encoder_sharing: Optional[str] = option_field(_SHARING + _ONLY.format("encoder"))
    encoder_unique_layers: Optional[int] = option_field(_UNIQUE + _ONLY.format("encoder"))
    encoder_layer_map: Optional[str] = option_field(_MAP + _ONLY.format("encoder"))
    encoder_sharing_scope: Optional[str] = option_field(_SCOPE + _ONLY.format("encoder"))
    decoder_sharing: Optional[str] = option_field(_SHARING + _ONLY.format("decoder"))
    decoder_unique_layers: Optional[int] = option_field(_UNIQUE + _ONLY.format("decoder"))
    decoder_layer_map: Optional[str] = option_field(_MAP + _ONLY.format("decoder"))
    decoder_sharing_scope: Optional[str] = option_field(_SCOPE + _ONLY.format("decoder"))
    component_sharing: Optional[str] = option_field(_COMPONENTS)
    encoder_component_sharing: Optional[str] = option_field(
        _COMPONENTS + " (encoder only; overrides component by component)"
    )
    decoder_component_sharing: Optional[str] = option_field(
        _COMPONENTS + " (decoder only; overrides component by component)"
    )
    cross_stack_sharing: Optional[str] = option_field(
        f"maps of components whose sets both stacks use, for {', '.join(SPANS)}: as --component-sharing, for the "
        f"encoder's layers followed by the decoder's; {BY_DEPTH}: layers of equal depth share; attention: encoder and "
        "decoder self-attention and cross-attention use the same sets"
    )
    preset: Optional[str] = option_field(
        "a published sharing scheme, a bundle of flags; a flag of the bundle that is also given keeps the given value"
    )
    admin: ChoiceEnum(["off", "profile", "closed_form"]) = option_field(
        "Admin's residual weights for post-norm stacks, one vector per sub-layer, never shared: profile sets them from "
        "the variances of the first training batch, closed_form to the square root of the sub-layer's number",
        "off",
    )
    deepnorm: bool = option_field(
        "DeepNorm for post-norm stacks: one fixed weight for all residual connections of a stack, and smaller initial "
        "values",
        False,
    )
    b2t: bool = option_field(
        "B2T connections for post-norm stacks: also add the input of each layer before its last LayerNorm", False
    )
    encoder_no_ffn: bool = option_field("encoder layers without feed-forward network and its LayerNorm", False)
    decoder_no_ffn: bool = option_field("decoder layers without feed-forward network and its LayerNorm", False)
    embedding_factor_dim: Optional[int] = option_field(
        "width E of factorized embeddings: a table V x E and a projection E x d instead of a table V x d; tied output "
        "layers use both"
    )
    depth_signal: ChoiceEnum(["off", "sinusoidal", "learned"]) = option_field(
        "Universal Transformer: vector added to the input of each layer, one per depth", "off"
    )
    position_per_depth: bool = option_field(
        "Universal Transformer: add the position embeddings before every layer, not only before the first", False
    )
    act: ChoiceEnum(["off", "encoder", "decoder", "both"]) = option_field(
        "Universal Transformer: stacks with adaptive computation time, in which each token halts at its own depth; "
        f"requires --criterion {_PONDER_CRITERION}",
        "off",
    )
    act_epsilon: float = option_field("a token halts when its halting probabilities sum to 1 minus this value", 0.01)
    precision: ChoiceEnum(["fp32", "bf16"]) = option_field(
        "precision of training: bf16 runs the model under autocast, on CPU and GPU, with fp32 weights and optimizer, "
        "without loss scaling; validation and decoding use fp32",
        "fp32",
    )
    fast: bool = option_field(
        "faster training, equal except for rounding and the random numbers of dropout; use it with --criterion "
        "fused_label_smoothed_cross_entropy and --optimizer fused_adam",
        False,
    )
    compile: bool = option_field(
        "compile the layers for training, one graph for all depths of a stack; requires --fast",
        False,
    )


def add_sharing_args(parser: ArgumentParser) -> None:
    """Add the flags of ``SharingOptions`` and ``DepthOptions`` to a model's group of fairseq's parser."""
    gen_parser_from_dataclass(parser, SharingOptions(), delete_default=True)
    gen_parser_from_dataclass(parser, DepthOptions(), delete_default=True)


def set_defaults(args: Namespace) -> None:
    """Set each missing sharing option to its default, so that a checkpoint contains all of them."""
    for option in (*fields(SharingOptions), *fields(DepthOptions)):
        if option.name != "_name" and getattr(args, option.name, None) is None:
            setattr(args, option.name, option.default)


def known_options() -> set[str]:
    """Return the names of the options that a preset can set: those of this package and of fairseq's Transformer."""
    both = {option.name for config in (SharingOptions, TransformerConfig) for option in fields(config)}
    return both | {f"{stack}_{option.name}" for stack in STACKS for option in fields(EncDecBaseConfig)}


def stack_sharing(cfg: Any, stack: str) -> StackSharing:
    """Read the sharing of a stack from the options.

    Args:
        cfg: fairseq's arguments or its TransformerConfig.
        stack: ``encoder`` or ``decoder``.

    Raises:
        SharingError: if the options give no layer map.
    """
    # getattr, because TransformerConfig stores encoder_x as encoder.x and resolves both names.
    options = {option.name: getattr(cfg, option.name, None) for option in fields(SharingOptions)}
    stacks = STACKS if options["cross_stack_sharing"] is not None else (stack,)
    return resolve_sharing(options, {name: int(getattr(cfg, f"{name}_layers")) for name in stacks})[stack]


def validate(args: Namespace, stacks: tuple[str, ...] = STACKS) -> dict[str, StackSharing]:
    """Check the sharing options against each other and against the other arguments of a model.

    Args:
        args: fairseq's arguments after the architecture was applied.
        stacks: the stacks that the model has.

    Returns:
        The sharing of each stack.

    Raises:
        SharingError: if the options give no layer map or cannot be combined with sharing.
    """
    if getattr(args, "cross_stack_sharing", None) is not None:
        refuse_unlike_stacks(args, stacks)
    sharing = {stack: stack_sharing(args, stack) for stack in stacks}
    for stack, resolved in sharing.items():
        if resolved.shares:
            refuse(args, f"{stack}_layerdrop", "shared layers cannot be dropped individually", 0)
            refuse(args, f"{stack}_layers_to_keep", "shared layers cannot be pruned individually", None)
    if any(s.shares for s in sharing.values()):
        refuse(args, "quant_noise_pq", "noise would be applied to a shared weight once per layer", 0)
        refuse(args, "quant_noise_scalar", "noise would be applied to a shared weight once per layer", 0)
        refuse(args, "base_layers", "expert layers change the layer numbering", 0)
        _refuse_fully_sharded(args, "cannot shard layers that share parameters", "--sharing")
    if getattr(args, "admin", "off") != "off":
        for stack in stacks:
            refuse(args, f"{stack}_normalize_before", "--admin requires post-norm layers", False)
        for flag in ("fp16", "bf16", "memory_efficient_fp16", "memory_efficient_bf16"):
            refuse(args, flag, "its copies of the weights would undo --admin; use --precision bf16 or --amp", False)
    refuse(args, "write_checkpoints_asynchronously", "fairseq writes them with iopath, and not as whole files", False)
    _validate_depth_steps(args, stacks)
    check_structures(args, stacks)
    validate_depths(args, sharing)
    validate_depth(args, stacks)
    if str(getattr(args, "criterion", None)).startswith(FUSED):
        refuse(args, "find_unused_parameters", "the fused loss uses the output projection outside the model", False)
        _refuse_fully_sharded(args, "hides the output projection from the fused loss", f"--criterion {args.criterion}")
    if getattr(args, "compile", False):
        for flag in ("checkpoint_activations", "offload_activations"):
            refuse(args, flag, "a recomputed compiled layer would draw different dropout masks", False)
        refuse(args, "cross_self_attention", "--compile projects the source before the layer", False)
        if not getattr(args, "fast", False):
            raise SharingError("--compile requires --fast, whose attention it compiles")
    if getattr(args, "precision", "fp32") == "bf16":
        for flag in ("fp16", "bf16", "amp", "memory_efficient_fp16", "memory_efficient_bf16"):
            refuse(args, flag, "--precision bf16 keeps fp32 weights and casts by itself", False)
    return sharing


def _refuse_fully_sharded(args: Namespace, reason: str, flag: str) -> None:
    if getattr(args, "ddp_backend", None) == "fully_sharded":
        raise SharingError(
            f"--ddp-backend fully_sharded {reason}; allowed with {flag}: c10d, legacy_ddp, no_c10d, pytorch_ddp"
        )


def _validate_depth_steps(args: Namespace, stacks: tuple[str, ...]) -> None:
    """Check the options of the Universal Transformer."""
    act, signal = getattr(args, "act", "off"), getattr(args, "depth_signal", "off")
    if getattr(args, "position_per_depth", False):
        refuse(args, "no_token_positional_embeddings", "--position-per-depth adds the positions at every depth", False)
    if act != "off" or signal != "off":
        refuse(args, "base_layers", "expert layers change the layer numbering", 0)
        for stack in stacks:
            refuse(args, f"{stack}_layers_to_keep", "--act and --depth-signal depend on the layer numbers", None)
    if act == "off":
        return
    if act != "both" and act not in stacks:
        raise SharingError(f"--act {act}: this model has no {act}; allowed: off, {', '.join(stacks)}")
    epsilon = args.act_epsilon
    if not 0 < epsilon < 1:
        raise SharingError(f"--act-epsilon must be between 0 and 1, got {epsilon}")
    criterion = getattr(args, "criterion", None) or _PONDER_CRITERION
    if criterion != _PONDER_CRITERION:
        raise SharingError(
            f"--criterion {criterion} has no ponder cost, so every token would use all layers; "
            f"allowed with --act: {_PONDER_CRITERION} (with --ponder-weight 0 for no cost)"
        )
    refuse(args, "admin", "it measures the variances of a residual stream, which --act interrupts", "off")
    for stack in stacks if act == "both" else (act,):
        refuse(args, f"{stack}_layerdrop", "--act counts layers as steps", 0)
        if int(getattr(args, f"{stack}_layers")) < 2:
            raise SharingError(
                f"--act {act} requires --{stack}-layers of at least 2, got {getattr(args, f'{stack}_layers')}"
            )


def register_size(
    model: str, name: str, size: Callable[[Namespace], None], check: Callable[[Namespace], object]
) -> Callable[[Namespace], None]:
    """Register an architecture with the size of a fairseq architecture and optional sharing.

    Args:
        model: the registered model.
        name: the architecture's name.
        size: fairseq's function that sets the sizes.
        check: raises a SharingError for arguments that the model does not support.

    Returns:
        The architecture's function. It completes the arguments in place and checks them.
    """

    def architecture(args: Any) -> None:
        if isinstance(args, DictConfig):
            if "arch" not in args:  # a checkpoint contains complete arguments
                flags = flags_of(args, model)
                architecture(flags)
                args.update(vars(flags))
            return
        apply_preset(args, known_options(), size)
        size(args)
        set_defaults(args)
        check(args)

    register_model_architecture(model, name)(architecture)
    return architecture
