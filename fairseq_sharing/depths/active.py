"""Which layers of a stack run at a smaller depth.

At depth n, an increasing subsequence of n layers runs and the others are skipped. Layers keep their numbers, caches and
depth-specific parameters.
"""

from __future__ import annotations

from collections import Counter

from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import LayerMap, cycle_rev, format_map, num_unique, relabel, sandwich, sequence

Layers = tuple[int, ...]


def active_layers(layer_map: LayerMap, depth: int, what: str) -> Layers:
    """Return the layers that run at a depth.

    For every strategy, the maps of the active layers are those of the strategy for ``depth`` layers. Any other map runs
    its first layers. Every parameter set is used, and its owner is active, except in a stack that shares nothing: such
    a stack runs its first layers.

    Args:
        layer_map: N labels.
        depth: the number of layers to run, 1 to N.
        what: name of the depth in error messages, for example ``--depth``.

    Returns:
        Layer indices from 0, in ascending order.

    Raises:
        SharingError: the map has no such depth; the message names a parameter set that would not be used.
    """
    chosen = _choose(layer_map, depth) if 1 <= depth <= len(layer_map) else None
    missing = _left_out(layer_map, chosen or ())
    if chosen is not None and not missing:
        return chosen
    shown = format_map(layer_map)
    reason = (
        f"the layer map {shown} has no such depth"
        if chosen is None
        else f"leaves out parameter set {min(missing)} of the layer map {shown}"
    )
    allowed = ", ".join(map(str, possible_depths(layer_map)))
    raise SharingError(f"{what} {depth}: {reason}; allowed: {allowed}")


def possible_depths(layer_map: LayerMap) -> Layers:
    """Return the depths that a layer map has, in ascending order."""
    every = {depth: _choose(layer_map, depth) for depth in range(1, len(layer_map) + 1)}
    return tuple(depth for depth, chosen in every.items() if chosen is not None and not _left_out(layer_map, chosen))


def is_prefix(active: Layers) -> bool:
    """Return whether the active layers are the first ones."""
    return active == tuple(range(len(active)))


def _left_out(layer_map: LayerMap, chosen: Layers) -> set[int]:
    """Return the parameter sets that layers leave out; none in a stack that shares nothing."""
    return set(layer_map) - {layer_map[layer] for layer in chosen} if _shares(layer_map) else set()


def _shares(layer_map: LayerMap) -> bool:
    return num_unique(layer_map) < len(layer_map)


def _choose(layer_map: LayerMap, depth: int) -> Layers | None:
    """Choose the layers of a depth, which may leave out sets; None if the map's strategy does not allow the depth."""
    layers, sets = len(layer_map), num_unique(layer_map)
    prefix = tuple(range(depth))
    if depth in (layers, sets) and layer_map[:depth] == prefix:
        return prefix
    if depth == layers or not _shares(layer_map):
        return prefix
    if layer_map == relabel(sequence(layers, sets)):
        return _first_of_each_set(layer_map, depth, sets)
    if sets == 3 and layer_map == relabel(sandwich(layers, sets)) and depth >= sets:
        return (*range(depth - 1), layers - 1)
    if sets > 1 and layer_map == relabel(cycle_rev(layers, sets)):
        return _with_reversed_pass(layers, depth, sets)
    return prefix


def _first_of_each_set(layer_map: LayerMap, depth: int, sets: int) -> Layers | None:
    """Choose from each set as many layers as the strategy ``sequence`` gives it in a stack of this depth."""
    wanted = Counter(sequence(depth, sets))
    if any(layer_map.count(label) < count for label, count in wanted.items()):
        return None
    firsts = {label: layer_map.index(label) for label in wanted}
    return tuple(sorted(firsts[label] + i for label, count in wanted.items() for i in range(count)))


def _with_reversed_pass(layers: int, depth: int, sets: int) -> Layers | None:
    """Choose the first passes over the sets and the last one, which is reversed."""
    if depth < sets:
        return tuple(range(depth))
    last = layers - sets * (-(-layers // sets) - 1)
    if depth < 2 * sets or (layers - depth) % sets:
        return None
    return (*range(depth - last), *range(layers - last, layers))
