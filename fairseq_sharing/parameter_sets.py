"""Parameter sets: which set a parameter of a layer belongs to, and which parameter of a set owns it.

Parameters of different layers are one tensor if their sets are equal. The owner is the first of them in the order of
the stacks and layers. Names only, no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from fairseq_sharing.layer_map import StackSharing

# A set's name space or stack, its label, and the name of the parameter within it.
SetKey = tuple[str, int, str]
# Name space in which self-attention and cross-attention use the same sets.
ATTENTION = "attention"
_ATTENTIONS = ("self_attn", "encoder_attn")
# Part of a fairseq Transformer layer for the first component of a parameter's name.
_PART_OF = {
    "self_attn": "self_attn",
    "attn_ln": "layer_norm",
    "c_attn": "self_attn",
    "encoder_attn": "encoder_attn",
    "ffn": "ffn",
    "fc1": "ffn",
    "fc2": "ffn",
    "w_resid": "ffn",
    "ffn_layernorm": "layer_norm",
    "self_attn_layer_norm": "layer_norm",
    "encoder_attn_layer_norm": "layer_norm",
    "final_layer_norm": "layer_norm",
    "residual_weight": "depth",
    "depth": "depth",
}


def part_of(name: str) -> str | None:
    """Return the part of a layer that a parameter belongs to, given its name within the layer; None if unknown."""
    return _PART_OF.get(name.split(".")[0])


def in_scope(name: str, scope: tuple[str, ...]) -> bool:
    """Return whether a scope ties a parameter, given its name within the layer."""
    return scope == ("layer",) or part_of(name) in scope


def set_of(name: str, depth: int, stack: str, sharing: StackSharing) -> SetKey | None:
    """Return the set that a parameter belongs to.

    Args:
        name: its name within the layer.
        depth: the layer, from 0.
        stack: the layer's stack.
        sharing: the stack's maps.

    Returns:
        The set and the parameter's name within it; None if the maps do not cover the parameter.
    """
    part = part_of(name)
    component = None if part == "depth" else sharing.of_component(part)
    if component is None:
        return None
    if component.space == ATTENTION:
        name = name.removeprefix(f"{component.component}.")
    return (component.space or stack, component.labels[depth], name)


def find_borrowed(names: Mapping[str, Sequence[Iterable[str]]], sharing: Mapping[str, StackSharing]) -> dict[str, str]:
    """Map each parameter that a layer does not own to its owner.

    Args:
        names: for each stack, the names of the parameters of each layer that maps can tie.
        sharing: the maps of each stack.

    Returns:
        Full name of each borrowed parameter -> full name of its owner, such as ``encoder.layers.3.fc1.weight`` ->
        ``encoder.layers.0.fc1.weight``.
    """
    first: dict[SetKey, str] = {}
    borrowed = {}
    for stack, layers in names.items():
        for depth, layer in enumerate(layers):
            for name in layer:
                key = set_of(name, depth, stack, sharing[stack])
                full = full_name(stack, depth, name)
                if key is not None and first.setdefault(key, full) != full:
                    borrowed[full] = first[key]
    return borrowed


def complete(stored: Mapping[str, Mapping[int, Sequence[str]]], sharing: Mapping[str, StackSharing]) -> dict[str, str]:
    """Map the parameters that a state dict omits, because layers borrow them, to the stored ones.

    Args:
        stored: for each stack and layer, the names that the state dict contains.
        sharing: the maps of each stack, in the order of the stacks in the model.

    Returns:
        Full name of each omitted parameter -> full name of its owner.
    """
    stored_of: dict[tuple[str, int], dict[SetKey, str]] = {}  # space and label of a set -> its stored parameters
    omitted = {}
    for stack, shared in sharing.items():
        for depth in range(len(shared.layer_map)):
            present = stored.get(stack, {}).get(depth, ())
            for name in present:
                if (own := set_of(name, depth, stack, shared)) is not None:
                    stored_of.setdefault(own[:2], {}).setdefault(own, full_name(stack, depth, name))
            for component in shared.maps:
                parameters = stored_of.get((component.space or stack, component.labels[depth]), {})
                for key, owner in parameters.items():
                    for name in _names_in_layer(key):
                        if set_of(name, depth, stack, shared) == key and name not in present:
                            omitted[full_name(stack, depth, name)] = owner
    return omitted


def _names_in_layer(key: SetKey) -> Iterator[str]:
    """List the possible names, within a layer, of a parameter of a set."""
    space, _, name = key
    if space == ATTENTION and part_of(name) is None:
        yield from (f"{attention}.{name}" for attention in _ATTENTIONS)
    else:
        yield name


def full_name(stack: str, depth: int, name: str) -> str:
    """Return a parameter's name in the model; relative to the stack if the stack's name is empty."""
    return f"{stack}.layers.{depth}.{name}".removeprefix(".")


def names_by_layer(names: Iterable[object], stack: str) -> dict[int, list[str]]:
    """List the names of a state dict that belong to the layers of a stack, by layer."""
    pattern = re.compile(rf"{re.escape(stack)}\.layers\.(\d+)\.(.+)")
    found: dict[int, list[str]] = {}
    for name in names:
        if match := pattern.fullmatch(str(name)):
            found.setdefault(int(match[1]), []).append(match[2])
    return found
