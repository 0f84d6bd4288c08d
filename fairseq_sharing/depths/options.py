"""Flags of several depths, and the options that they cannot be combined with."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass

from fairseq_sharing.adapters.kinds import DepthKinds
from fairseq_sharing.depths.active import active_layers, is_prefix
from fairseq_sharing.depths.sampling import Depths, poisson_lognormal, with_full_share
from fairseq_sharing.depths.settings import Setting
from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import StackSharing, format_sharing
from fairseq_sharing.options import flag_of, option_field, refuse

FULL_SHARE = 0.5
_LISTED = (
    "depths to train: an ascending, comma-separated list of numbers of layers that ends with the number of layers N"
)
# Option -> its value without effect, and why several depths exclude any other.
REFUSED = {
    "act": ("off", "it chooses the depth of each token"),
    "encoder_layerdrop": (0, "it skips layers by itself"),
    "decoder_layerdrop": (0, "it skips layers by itself"),
    "encoder_layers_to_keep": (None, "pruning changes the layer numbering"),
    "decoder_layers_to_keep": (None, "pruning changes the layer numbering"),
    "base_layers": (0, "expert layers change the layer numbering"),
    "deepnorm": (None, "its constants depend on the number of layers"),
}
_DDP = ("c10d", "pytorch_ddp")  # they require a gradient of every parameter


@dataclass
class DepthOptions(FairseqDataclass):
    """Options of several depths that all models of this package add to those of fairseq."""

    # fairseq derives the flags from these annotations at run time: use Optional and no postponed annotations.

    depths: Optional[str] = option_field(_LISTED + "; both stacks run at the same depth")
    encoder_depths: Optional[str] = option_field(
        _LISTED + " (encoder only; overrides --depths; the depths of the two stacks are then independent)"
    )
    decoder_depths: Optional[str] = option_field(
        _LISTED + " (decoder only; overrides --depths; the depths of the two stacks are then independent)"
    )
    depth_sampling: str = option_field(
        "how often each depth is trained: uniform, poisson_lognormal (as Huginn, with the mean of the listed depths), "
        "or one weight per depth of --depths, for example 1,1,2",
        "uniform",
    )
    depth_full_share: Optional[float] = option_field(
        f"share of the steps that run all layers, except with weights (default: {FULL_SHARE})"
    )
    depth_loss: ChoiceEnum(["sampled", "aligned"]) = option_field(
        "sampled: one depth per step; aligned: the weighted loss of all depths of the decoder, from one pass",
        "sampled",
    )


DEFAULTS = {option.name: option.default for option in fields(DepthOptions) if option.name != "_name"}


def read_depths(options: Any, sharing: Mapping[str, StackSharing]) -> Depths | None:
    """Read the depths to train.

    Args:
        options: fairseq's arguments; missing ones equal the defaults.
        sharing: the sharing of each stack, encoder first.

    Returns:
        The depths; None if the model is trained with all layers only.

    Raises:
        SharingError: a depth that a layer map does not have, or an invalid option.
    """
    given = {**DEFAULTS, **{name: value for name in DEFAULTS if (value := getattr(options, name, None)) is not None}}
    for stack in ("encoder", "decoder"):
        if given[f"{stack}_depths"] is not None and stack not in sharing:
            raise SharingError(f"--{stack}-depths {given[f'{stack}_depths']}: the model has no {stack}")
    own = any(given[f"{stack}_depths"] is not None for stack in sharing)
    if given["depths"] is None and not own:
        _refuse_without_depths(given)
        return None
    refuse_components(sharing)
    listed = {stack: _listed(given, stack, shared) for stack, shared in sharing.items()}
    settings: list[dict[str, int]]
    if own:
        settings = [dict(zip(listed, combined, strict=True)) for combined in itertools.product(*listed.values())]
    else:
        settings = [dict.fromkeys(listed, depth) for depth in next(iter(listed.values()))]
    if len(settings) == 1:
        return None
    probabilities = _probabilities(given, settings, listed, together=not own)
    aligned = str(given["depth_loss"]) == "aligned"
    if aligned:
        _check_aligned(listed, sharing)
    seed = getattr(options, "seed", None)
    return Depths(tuple(settings), probabilities, 1 if seed is None else int(seed), aligned)


def refuse_components(sharing: Mapping[str, StackSharing]) -> None:
    """Refuse a model whose components have maps of their own.

    Raises:
        SharingError: with the stack and its maps.
    """
    for stack, shared in sharing.items():
        if shared.components:
            raise SharingError(
                f"several depths of the {stack} require one map of whole layers, but its components have the maps "
                f"{format_sharing(shared)}; allowed: --sharing without --component-sharing and --cross-stack-sharing"
            )


def trained_settings(options: Any, sharing: Mapping[str, StackSharing]) -> tuple[Setting, ...]:
    """Return the settings that a model with these options was trained at; the last one runs all layers."""
    depths = read_depths(options, sharing)
    return depths.settings if depths else ({stack: len(shared.layer_map) for stack, shared in sharing.items()},)


def validate_depths(args: Any, sharing: Mapping[str, StackSharing]) -> None:
    """Check the options of several depths against each other and against the other arguments of a model.

    Args:
        args: fairseq's arguments after the architecture was applied.
        sharing: the sharing of each stack.

    Raises:
        SharingError: with the flag and the allowed values.
    """
    depths = read_depths(args, sharing)
    if depths is None:
        return
    for name, (allowed, reason) in REFUSED.items():
        refuse(args, name, reason, allowed, "several depths")
    for stack, depth, active in _active(depths, sharing):
        if getattr(args, "admin", "off") != "off" and not is_prefix(active):
            raise SharingError(
                f"--admin {args.admin} cannot be combined with depth {depth} of the {stack}: it skips layers before "
                "the last one, whose outputs the residual weights of later layers depend on; allowed: off"
            )
    if not depths.aligned and _leaves_unused(args, depths, sharing):
        _check_data_parallel(args)


def _refuse_without_depths(given: Mapping[str, Any]) -> None:
    for name, default in DEFAULTS.items():
        value = given[name]
        if value is not None and str(value) != str(default):
            raise SharingError(f"{flag_of(name)} {value}: requires --depths")


def _listed(given: Mapping[str, Any], stack: str, shared: StackSharing) -> tuple[int, ...]:
    """Return the listed depths of a stack in ascending order, checked against its layer map."""
    own = given[f"{stack}_depths"]
    flag, text = (f"--{stack}-depths", own) if own is not None else ("--depths", given["depths"])
    layers = len(shared.layer_map)
    if text is None:
        return (layers,)
    words = [word.strip() for word in str(text).split(",")]
    depths = [int(word) for word in words if word.isdecimal()]
    # Ascending, so that there is no doubt about which depth a weight of --depth-sampling belongs to.
    if len(depths) < len(words) or depths != sorted(set(depths)):
        raise SharingError(f"{flag} {text}: allowed: numbers of layers in ascending order, separated by commas")
    if layers not in depths:
        raise SharingError(
            f"{flag} {text}: does not include all {layers} layers of the {stack}; allowed: a list with {layers}"
            + ("" if own is not None else ", or --encoder-depths and --decoder-depths")
        )
    for depth in depths:
        active_layers(shared.layer_map, depth, flag)
    return tuple(depths)


def _probabilities(
    given: Mapping[str, Any], settings: Sequence[Setting], listed: Mapping[str, tuple[int, ...]], together: bool
) -> tuple[float, ...]:
    """Return the share of each setting in the steps."""
    sampling, share = str(given["depth_sampling"]), given["depth_full_share"]
    if share is not None and not 0 < share < 1:
        raise SharingError(f"--depth-full-share {share}: allowed: more than 0 and less than 1")
    if sampling == "uniform":
        weights = [1.0] * len(settings)
    elif sampling == "poisson_lognormal":
        of_stack = {
            stack: dict(zip(depths, poisson_lognormal(depths), strict=True)) for stack, depths in listed.items()
        }
        stacks = list(listed)[:1] if together else list(listed)
        weights = [math.prod(of_stack[stack][setting[stack]] for stack in stacks) for setting in settings]
    else:
        return _given_weights(sampling, share, settings, together)
    return with_full_share(weights, FULL_SHARE if share is None else share)


def _given_weights(text: str, share: Any, settings: Sequence[Setting], together: bool) -> tuple[float, ...]:
    varying = together or sum(len({setting[stack] for setting in settings}) > 1 for stack in settings[0]) == 1
    try:
        weights = [float(word) for word in text.split(",")]
    except ValueError:
        weights = []
    if (
        not varying
        or len(weights) != len(settings)
        or not all(0 <= w < float("inf") for w in weights)
        or not any(weights)
    ):
        allowed = "uniform, poisson_lognormal"
        if varying:
            allowed += f", or {len(settings)} weights of 0 or more, one per depth"
        raise SharingError(f"--depth-sampling {text}: allowed: {allowed}")
    if share is not None:
        raise SharingError(
            f"--depth-full-share {share}: --depth-sampling {text} gives the share of every depth; omit it"
        )
    return tuple(weight / sum(weights) for weight in weights)


def _check_aligned(listed: Mapping[str, tuple[int, ...]], sharing: Mapping[str, StackSharing]) -> None:
    if "decoder" not in listed:
        raise SharingError("--depth-loss aligned: requires a decoder; allowed: sampled")
    if len(listed.get("encoder", (0,))) > 1:
        layers = len(sharing["encoder"].layer_map)
        raise SharingError(
            "--depth-loss aligned: trains depths of the decoder, whose encoder runs all layers; "
            f"allowed: --encoder-depths {layers}, or sampled"
        )
    for depth in listed["decoder"]:
        if not is_prefix(active_layers(sharing["decoder"].layer_map, depth, "--depths")):
            raise SharingError(
                f"--depth-loss aligned: depth {depth} of the decoder is not a beginning of the full stack; "
                "allowed: sampled"
            )


def _active(depths: Depths, sharing: Mapping[str, StackSharing]) -> list[tuple[str, int, tuple[int, ...]]]:
    return [
        (stack, setting[stack], active_layers(shared.layer_map, setting[stack], "--depths"))
        for setting in depths.settings
        for stack, shared in sharing.items()
    ]


def _leaves_unused(args: Any, depths: Depths, sharing: Mapping[str, StackSharing]) -> bool:
    """Return whether some parameters have no gradient at some depth."""
    for stack, depth, active in _active(depths, sharing):
        shared = sharing[stack]
        own = getattr(args, "admin", "off") != "off" or bool(DepthKinds.read(args))
        whole = shared.scope == ("layer",) and not own
        uses_all = {shared.layer_map[layer] for layer in active} == set(shared.layer_map)
        if depth < len(shared.layer_map) and not (whole and uses_all):
            return True
    return False


def _check_data_parallel(args: Any) -> None:
    ranks = int(getattr(args, "distributed_world_size", None) or 1)
    backend = str(getattr(args, "ddp_backend", None) or _DDP[1])
    if ranks > 1 and backend in _DDP and not getattr(args, "find_unused_parameters", False):
        raise SharingError(
            f"--ddp-backend {backend} cannot be combined with these depths on several ranks: some parameters have no "
            "gradient at a smaller depth; allowed: legacy_ddp, no_c10d, or --find-unused-parameters"
        )
