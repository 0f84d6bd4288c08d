"""Read the sharing recorded in a state dict, and reject entries that no model of this package writes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from fairseq_sharing.adapters.kinds import DepthKinds
from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import SCOPES, ComponentMap, StackSharing, relabel
from fairseq_sharing.parameter_sets import ATTENTION, complete, find_borrowed, full_name, names_by_layer

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
    version = extra.get("version", 1)
    _require(version in (1, 2) and type(version) is int, "version", version, "1 or 2")
    for stack, shared in stacks.items():
        _check_stack(stack, shared, version)
    for stack, layers in frozen.items():
        _require(stack in stacks, "frozen", stack, f"a stack that has a layer map ({', '.join(stacks)})")
        _require(
            _are_layers(layers, len(_read_stack(stacks[stack]).layer_map)),
            f"frozen.{stack}",
            layers,
            "layers of the map",
        )
    for name, owner in aliases.items():
        _require(
            isinstance(name, str) and ".layers." not in name, "aliases", name, "names of tensors outside of layers"
        )
        _require(isinstance(owner, str) and torch.is_tensor(state.get(owner)), f"aliases.{name}", owner, "a tensor")
    changed_by, pending = extra.get("map_changed_by"), extra.get("admin_pending", False)
    _require(changed_by is None or isinstance(changed_by, str), "map_changed_by", changed_by, "text")
    _require(isinstance(pending, bool), "admin_pending", pending, "true or false")
    depths = extra.get("depths", [])
    _require(_are_settings(depths, stacks), "depths", depths, "a list of one number of layers per stack")
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
    sharing = recorded_sharing(state)
    tensors = {name: value.shape for name, value in state.items() if torch.is_tensor(value)}
    stored = {stack: names_by_layer(tensors, stack) for stack in sharing}
    for stack, shared in sharing.items():
        beyond = sorted(stored[stack].keys() - range(len(shared.layer_map)))
        if beyond:
            _refuse(
                f"stacks.{stack}.layer_map",
                list(shared.layer_map),
                f"one label per layer; the file contains layer {beyond[-1]}",
            )
        if 0 not in stored[stack] and not shared.spans_stacks:
            raise SharingError(f"the checkpoint has a layer map of {stack} but no tensor {stack}.layers.0.*")
    _require_adapters(tensors, DepthKinds.recorded(recorded_extra(state).get("depth", {})))
    _compare_layers(tensors, {stack: shared for stack, shared in sharing.items() if shared.shares}, stored)


def recorded_sharing(state: Mapping[str, Any]) -> dict[str, StackSharing]:
    """Read the maps of a model's state dict; empty for a vanilla fairseq model.

    Raises:
        SharingError: the recorded sharing is malformed.
    """
    return {name: _read_stack(shared) for name, shared in recorded_extra(state).get("stacks", {}).items()}


def record(sharing: Mapping[str, StackSharing]) -> dict[str, Any]:
    """Make the part of the entry that records maps.

    Version 1 has one map and a scope per stack. Version 2, which models with maps of components need, has a map per
    component and the name space of sets across stacks.
    """
    if not any(shared.components for shared in sharing.values()):
        return {
            "stacks": {name: {"layer_map": list(s.layer_map), "scope": list(s.scope)} for name, s in sharing.items()}
        }
    stacks = {
        name: {
            "maps": {component.component: list(component.labels) for component in shared.maps},
            "spaces": {component.component: component.space for component in shared.maps if component.space},
        }
        for name, shared in sharing.items()
    }
    return {"version": 2, "stacks": stacks}


def _read_stack(shared: Mapping[str, Any]) -> StackSharing:
    """Read the checked entry of a stack."""
    if "maps" not in shared:
        return StackSharing(tuple(shared["layer_map"]), tuple(shared["scope"]))
    spaces = shared.get("spaces", {})
    maps = [ComponentMap(name, tuple(labels), spaces.get(name, "")) for name, labels in shared["maps"].items()]
    if len({component.labels for component in maps}) == 1 and not spaces:
        return StackSharing(maps[0].labels, tuple(component.component for component in maps))
    return StackSharing.of(maps)


def _check_stack(stack: Any, shared: Any, version: int) -> None:
    _require(isinstance(stack, str) and _STACK_NAME.fullmatch(stack), "stacks", stack, "names such as encoder")
    _require(isinstance(shared, Mapping), f"stacks.{stack}", shared, "a dict")
    if version == 2:
        _check_components(f"stacks.{stack}", shared)
        return
    _check_labels(f"stacks.{stack}.layer_map", shared.get("layer_map"))
    _check_scope(f"stacks.{stack}.scope", shared.get("scope"), "['layer'], or a list of")


def _check_components(where: str, shared: Mapping[str, Any]) -> None:
    """Check the maps of the components of a stack."""
    maps, spaces = shared.get("maps", {}), shared.get("spaces", {})
    _require(isinstance(maps, Mapping), f"{where}.maps", maps, "a dict")
    _require(isinstance(spaces, Mapping), f"{where}.spaces", spaces, "a dict")
    _check_scope(f"{where}.maps", list(maps), "the map of layer, or those of")
    for component, space in spaces.items():
        known = component in maps and isinstance(space, str) and (space == ATTENTION or space in SCOPES[1:])
        _require(known, f"{where}.spaces.{component}", space, f"{ATTENTION}, {', '.join(SCOPES[1:])}")
    for component, labels in maps.items():
        if component in spaces:
            _require(_are_labels(labels, 2**31), f"{where}.maps.{component}", labels, "labels of sets across stacks")
        else:
            _check_labels(f"{where}.maps.{component}", labels)
    sizes = sorted({len(labels) for labels in maps.values()})
    _require(len(sizes) == 1, f"{where}.maps", f"maps of {', '.join(map(str, sizes))} layers", "maps of equal length")


def _check_labels(where: str, labels: Any) -> None:
    whole = _are_labels(labels, len(labels) if isinstance(labels, list | tuple) else 0)
    _require(
        whole and list(relabel(labels)) == list(labels),
        where,
        labels,
        "labels from 0 in the order of first use, such as [0, 1, 0]",
    )


def _are_labels(labels: Any, count: int) -> bool:
    return isinstance(labels, list | tuple) and bool(labels) and _are_layers(labels, count, distinct=False)


def _check_scope(where: str, scope: Any, allowed: str) -> None:
    known = isinstance(scope, list | tuple) and scope and all(isinstance(part, str) for part in scope)
    _require(
        known and set(scope) <= set(SCOPES) and ("layer" not in scope or len(scope) == 1),
        where,
        scope,
        f"{allowed} {', '.join(SCOPES[1:])}",
    )


def _are_layers(values: Any, count: int, distinct: bool = True) -> bool:
    if not isinstance(values, list | tuple):
        return False
    numbers = [value for value in values if isinstance(value, int) and not isinstance(value, bool)]
    in_range = len(numbers) == len(values) and all(0 <= number < count for number in numbers)
    return in_range and (not distinct or len(set(numbers)) == len(numbers))


def _compare_layers(
    shapes: Mapping[str, torch.Size],
    sharing: Mapping[str, StackSharing],
    stored: Mapping[str, Mapping[int, Sequence[str]]],
) -> None:
    """Compare the tensors of the layers of each stack that shares parameters; they all have the same structure."""
    source = complete(stored, sharing)
    leaves: dict[str, dict[str, str]] = {stack: {} for stack in sharing}  # name in a layer -> the first such tensor
    for stack, shared in sharing.items():
        omitted = names_by_layer(source, stack)
        for depth in range(len(shared.layer_map)):
            for name in (*stored[stack].get(depth, ()), *omitted.get(depth, ())):
                full = full_name(stack, depth, name)
                leaves[stack].setdefault(name, source.get(full, full))
    names = {stack: [list(leaves[stack])] * len(shared.layer_map) for stack, shared in sharing.items()}
    tied = find_borrowed(names, sharing)
    for stack, shared in sharing.items():
        for depth in range(len(shared.layer_map)):
            for name, first in leaves[stack].items():
                _check_tensor(shapes, full_name(stack, depth, name), shapes[first], tied)


def _require_adapters(names: Iterable[str], kinds: DepthKinds) -> None:
    """Reject recorded adapters and scales of which the state dict has no tensor."""
    for kind, recorded in (("lora", kinds.rank), ("scale", kinds.scale)):
        if recorded and not any(f".depth.{kind}." in name for name in names):
            raise SharingError(f"the checkpoint records {kind} as a depth parameter but has no tensor *.depth.{kind}.*")


def _are_settings(values: Any, stacks: Mapping[str, Any]) -> bool:
    """Return whether values are the depths that a model was trained at."""
    layers = {stack.split(".")[0]: len(_read_stack(shared).layer_map) for stack, shared in stacks.items()}
    return isinstance(values, list | tuple) and all(
        isinstance(setting, Mapping)
        and setting.keys() == layers.keys()
        and all(_are_layers([depth], layers[stack] + 1) and depth for stack, depth in setting.items())
        for setting in values
    )


def _check_tensor(shapes: Mapping[str, torch.Size], full: str, wanted: torch.Size, tied: Mapping[str, str]) -> None:
    """Check one tensor of a layer: stored by its owner only, or by all layers as in a materialized checkpoint."""
    owner, (stack, place) = tied.get(full), full.split(".layers.")
    if full not in shapes:
        if owner not in shapes:
            raise SharingError(f"the checkpoint lacks the tensor {full}, which its layer map and other layers require")
        return
    if shapes[full] != wanted:
        raise SharingError(
            f"the checkpoint's tensor {full} has the shape {list(shapes[full])}, but {list(wanted)} in other "
            "layers; allowed: equal shapes"
        )
    leaf = place.partition(".")[2]
    if owner is not None and not all(name in shapes for name in tied if name.endswith(f".{leaf}")):
        lender, _, lent = owner.partition(".layers.")
        source = f"layer {lent.partition('.')[0]}" if lender == stack else owner
        raise SharingError(
            f"the checkpoint has a tensor {full} that its layer map takes from {source}; "
            "allowed: tensors that match the map"
        )


def _require(holds: Any, field: str, value: Any, allowed: str) -> None:
    if not holds:
        _refuse(field, value, allowed)


def _refuse(field: str, value: Any, allowed: str) -> None:
    where = ".".join(part for part in (EXTRA_STATE, field) if part)
    shown = repr(value if not isinstance(value, Sequence) or isinstance(value, str) else value[:20])[:100]
    raise SharingError(f"the checkpoint's {where}: got {shown}; allowed: {allowed}")
