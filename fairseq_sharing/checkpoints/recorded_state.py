"""Read the sharing recorded in a state dict, and reject entries that no model of this package writes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fairseq_sharing.adapters.kinds import DepthKinds
from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import SCOPES, StackSharing, relabel
from fairseq_sharing.tying import in_scope

EXTRA_STATE = "_extra_state"
_STACK_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def recorded_extra(state: Mapping[str, Any]) -> dict[str, Any]:
    """Read the entry of a state dict that records the sharing.

    Args:
        state: a model's state dict.

    Returns:
        The entry, always with "stacks" and "aliases"; empty for a vanilla fairseq model.

    Raises:
        SharingError: the entry is malformed; the message names the field, its value and the allowed values.
    """
    extra = state.get(EXTRA_STATE)
    if extra is None or extra == {}:
        return {}
    _require(isinstance(extra, Mapping), "", extra, "a dict")
    stacks, aliases, frozen = (extra.get(name, {}) for name in ("stacks", "aliases", "frozen"))
    for name, value in (("stacks", stacks), ("aliases", aliases), ("frozen", frozen)):
        _require(isinstance(value, Mapping), name, value, "a dict")
    for stack, shared in stacks.items():
        _check_stack(stack, shared)
    for stack, layers in frozen.items():
        _require(stack in stacks, "frozen", stack, f"a stack that has a layer map ({', '.join(stacks)})")
        _require(_are_layers(layers, len(stacks[stack]["layer_map"])), f"frozen.{stack}", layers, "layers of the map")
    for name, owner in aliases.items():
        _require(
            isinstance(name, str) and ".layers." not in name, "aliases", name, "names of tensors outside of layers"
        )
        _require(isinstance(owner, str) and torch.is_tensor(state.get(owner)), f"aliases.{name}", owner, "a tensor")
    changed_by, pending = extra.get("map_changed_by"), extra.get("admin_pending", False)
    _require(changed_by is None or isinstance(changed_by, str), "map_changed_by", changed_by, "text")
    _require(isinstance(pending, bool), "admin_pending", pending, "true or false")
    try:
        DepthKinds.recorded(extra.get("depth", {}))
    except ValueError:
        _refuse("depth", extra["depth"], "lora with rank and of; scale, bias and norm")
    return {**extra, "stacks": stacks, "aliases": aliases}


def refuse_incomplete(state: Mapping[str, Any]) -> None:
    """Reject a state dict whose tensors do not match its recorded layer maps.

    Raises:
        SharingError: a layer lacks a tensor, has a tensor of a different shape, or has a tensor that should be tied.
    """
    odd = next((key for key in state if not isinstance(key, str)), None)
    if odd is not None:
        raise SharingError(f"the checkpoint's model has the entry {odd!r:.60}; allowed: names of tensors")
    for stack, shared in recorded_extra(state).get("stacks", {}).items():
        sharing = StackSharing(tuple(shared["layer_map"]), tuple(shared["scope"]))
        layers = _tensors_by_layer(state, stack)
        beyond = sorted(layers.keys() - range(len(sharing.layer_map)))
        if beyond:
            _refuse(
                f"stacks.{stack}.layer_map",
                shared["layer_map"],
                f"one label per layer; the file contains layer {beyond[-1]}",
            )
        if 0 not in layers:
            raise SharingError(f"the checkpoint has a layer map of {stack} but no tensor {stack}.layers.0.*")
        if sharing.shares:
            _compare_layers(stack, sharing, layers)


def _check_stack(stack: Any, shared: Any) -> None:
    _require(isinstance(stack, str) and _STACK_NAME.fullmatch(stack), "stacks", stack, "names such as encoder")
    _require(isinstance(shared, Mapping), f"stacks.{stack}", shared, "a dict")
    labels, scope = shared.get("layer_map"), shared.get("scope")
    whole = isinstance(labels, list | tuple) and labels and _are_layers(labels, len(labels), distinct=False)
    _require(
        whole and list(relabel(labels)) == list(labels),
        f"stacks.{stack}.layer_map",
        labels,
        "labels from 0 in the order of first use, such as [0, 1, 0]",
    )
    known = isinstance(scope, list | tuple) and scope and all(isinstance(part, str) for part in scope)
    _require(
        known and set(scope) <= set(SCOPES) and ("layer" not in scope or len(scope) == 1),
        f"stacks.{stack}.scope",
        scope,
        f"['layer'], or a list of {', '.join(SCOPES[1:])}",
    )


def _are_layers(values: Any, count: int, distinct: bool = True) -> bool:
    if not isinstance(values, list | tuple):
        return False
    numbers = [value for value in values if isinstance(value, int) and not isinstance(value, bool)]
    in_range = len(numbers) == len(values) and all(0 <= number < count for number in numbers)
    return in_range and (not distinct or len(set(numbers)) == len(numbers))


def _tensors_by_layer(state: Mapping[str, Any], stack: str) -> dict[int, dict[str, torch.Size]]:
    layers: dict[int, dict[str, torch.Size]] = {}
    for key, value in state.items():
        match = re.match(rf"{re.escape(stack)}\.layers\.(\d+)\.(.+)", key)
        if match and torch.is_tensor(value):
            layers.setdefault(int(match[1]), {})[match[2]] = value.shape
    return layers


def _compare_layers(stack: str, sharing: StackSharing, layers: Mapping[int, Mapping[str, torch.Size]]) -> None:
    """Compare the tensors of a stack's layers, which all have the same structure."""
    shapes = {name: shape for depth in sorted(layers, reverse=True) for name, shape in layers[depth].items()}
    for depth, group in enumerate(sharing.layer_map):
        owner, own = sharing.layer_map.index(group), layers.get(depth, {})
        for name, shape in shapes.items():
            full = f"{stack}.layers.{depth}.{name}"
            tied = owner != depth and in_scope(name, sharing.scope)
            if name in own and own[name] != shape:
                raise SharingError(
                    f"the checkpoint's tensor {full} has the shape {list(own[name])}, but {list(shape)} in other "
                    "layers; allowed: equal shapes"
                )
            if name in own and tied and not all(name in layers.get(i, ()) for i in range(len(sharing.layer_map))):
                raise SharingError(
                    f"the checkpoint has a tensor {full} that its layer map takes from layer {owner}; "
                    "allowed: tensors that match the map"
                )
            if name not in own and not (tied and name in layers.get(owner, ())):
                raise SharingError(
                    f"the checkpoint lacks the tensor {full}, which its layer map and other layers require"
                )


def _require(holds: Any, field: str, value: Any, allowed: str) -> None:
    if not holds:
        _refuse(field, value, allowed)


def _refuse(field: str, value: Any, allowed: str) -> None:
    where = ".".join(part for part in (EXTRA_STATE, field) if part)
    shown = repr(value if not isinstance(value, Sequence) or isinstance(value, str) else value[:20])[:100]
    raise SharingError(f"the checkpoint's {where}: got {shown}; allowed: {allowed}")
