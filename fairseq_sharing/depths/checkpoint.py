"""Convert a model, or a checkpoint, to the model of one of its depths: an ordinary model with fewer layers."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq_sharing.checkpoints.arguments import model_arguments, with_model_arguments
from fairseq_sharing.checkpoints.files import load_checkpoint
from fairseq_sharing.checkpoints.recorded_state import EXTRA_STATE, recorded_extra, recorded_sharing
from fairseq_sharing.depths.active import Layers, active_layers, is_prefix
from fairseq_sharing.depths.options import DEFAULTS, REFUSED, refuse_components, trained_settings
from fairseq_sharing.depths.settings import DepthRequest
from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import STRATEGIES, StackSharing, format_map, make_layer_map, num_unique, relabel
from fairseq_sharing.options import refuse


def take_depth(checkpoint: Mapping[str, Any], request: DepthRequest) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the checkpoint of a model with the layers that run at a depth.

    Args:
        checkpoint: the result of ``load_checkpoint``; it is not modified.
        request: the depth.

    Returns:
        The checkpoint, without optimizer state, and the depth of each stack. Tensors are the same objects.

    Raises:
        SharingError: the model is not from this package, was not trained at this depth, or has no such depth.
    """
    arguments, state = model_arguments(checkpoint), checkpoint["model"]
    sharing = {path.split(".")[0]: shared for path, shared in recorded_sharing(state).items()}
    if not sharing:
        raise SharingError(
            "--depth: the checkpoint records no layer map; allowed: models of this package, such as transformer_sharing"
        )
    refuse_components(sharing)
    setting = request.resolve(trained_settings(Namespace(**arguments), sharing))
    active = {s: active_layers(shared.layer_map, setting[s], request.flag(s)) for s, shared in sharing.items()}
    if any(len(layers) < len(sharing[stack].layer_map) for stack, layers in active.items()):
        refuse(Namespace(**arguments), "deepnorm", REFUSED["deepnorm"][1], None, "several depths")
    for stack, layers in active.items():
        if arguments.get("depth_signal") == "sinusoidal" and not is_prefix(layers):
            raise SharingError(
                f"--depth-signal sinusoidal: depth {len(layers)} of the {stack} skips layers before the last "
                "one, whose signals a model of that depth would not skip; allowed: depths that run the first layers"
            )
    taken = with_model_arguments(
        {**checkpoint, "model": _state_at(state, active)}, arguments_at(arguments, sharing, active)
    )
    taken.pop("last_optimizer_state", None)
    return taken, setting


def load_at_depth(path: Path, request: DepthRequest) -> tuple[dict[str, Any], dict[str, int]]:
    """Load a checkpoint and take a depth of its model; errors name the file.

    Args:
        path: the checkpoint.
        request: the depth.

    Returns:
        See ``take_depth``.

    Raises:
        SharingError: see ``load_checkpoint`` and ``take_depth``.
    """
    checkpoint = load_checkpoint(path)
    try:
        return take_depth(checkpoint, request)
    except SharingError as error:
        raise SharingError(f"{path}: {error}") from error


def arguments_at(
    arguments: Mapping[str, Any], sharing: Mapping[str, StackSharing], active: Mapping[str, Layers]
) -> dict[str, Any]:
    """Return the arguments of the model whose layers are the active layers of another model.

    Args:
        arguments: fairseq's arguments of the other model.
        sharing: the sharing of its stacks.
        active: the active layers of each stack.
    """
    changed = {**arguments, **DEFAULTS}
    for stack, layers in active.items():
        layer_map = relabel(sharing[stack].layer_map[layer] for layer in layers)
        own = arguments.get(f"{stack}_sharing")
        strategy = str((own if own is not None else arguments.get("sharing")) or "none")
        named = _gives(strategy, layer_map)
        fixed = named and STRATEGIES[strategy].fixed_unique_layers is not None
        changed[f"{stack}_layers"] = len(layers)
        changed[f"{stack}_sharing"] = strategy if named else "custom"
        changed[f"{stack}_unique_layers"] = None if fixed or not named else num_unique(layer_map)
        changed[f"{stack}_layer_map"] = None if named else format_map(layer_map)
    return changed


def _gives(strategy: str, layer_map: tuple[int, ...]) -> bool:
    """Return whether a strategy gives a map."""
    if strategy not in STRATEGIES:
        return False
    fixed = STRATEGIES[strategy].fixed_unique_layers
    sets = num_unique(layer_map)
    if fixed is not None and fixed(len(layer_map)) != sets:
        return False
    return make_layer_map(strategy, len(layer_map), sets) == layer_map


def _state_at(state: Mapping[str, Any], active: Mapping[str, Layers]) -> dict[str, Any]:
    """Renumber the tensors of the active layers and drop the others. The owner of each set is active."""
    paths = {path.split(".")[0]: path for path in recorded_extra(state)["stacks"]}
    extra = dict(state[EXTRA_STATE])
    extra["stacks"] = dict(extra["stacks"])
    for name in ("depths", "frozen"):
        extra.pop(name, None)
    number: dict[str, dict[int, int]] = {}
    for stack, layers in active.items():
        path = paths[stack]
        number[path] = {layer: index for index, layer in enumerate(layers)}
        recorded = extra["stacks"][path]
        new_map = relabel(recorded["layer_map"][layer] for layer in layers)
        extra["stacks"][path] = {**recorded, "layer_map": list(new_map)}
    taken: dict[str, Any] = {}
    for key, value in state.items():
        if key == EXTRA_STATE:
            taken[key] = extra
            continue
        found = re.fullmatch(r"(.+?)\.layers\.(\d+)\.(.+)", key)
        if found and found[1] in number:
            index = number[found[1]].get(int(found[2]))
            if index is not None:
                taken[f"{found[1]}.layers.{index}.{found[3]}"] = value
            continue
        path = key.removesuffix(".depth_signal.weight")
        taken[key] = value[list(number[path])] if path != key and path in number else value
    return taken
