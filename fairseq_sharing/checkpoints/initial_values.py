"""Choose the trained layers whose mean fills each parameter set of a shared stack."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import LayerMap, num_unique


def _first(layer_map: LayerMap, _num_layers: int) -> list[list[int]]:
    """Take the first layer that uses the set: with ``cycle``, the first M layers."""
    return [[layer_map.index(group)] for group in range(num_unique(layer_map))]


def _stepwise(layer_map: LayerMap, num_layers: int) -> list[list[int]]:
    """Take M layers at equal distances, including the first and the last: round(m (L - 1) / (M - 1)), half up.

    Source: Bae et al. 2025, "Relaxed Recursive Transformers", Stepwise.
    """
    m, gaps = num_unique(layer_map), max(num_unique(layer_map) - 1, 1)
    return [[(2 * group * (num_layers - 1) + gaps) // (2 * gaps)] for group in range(m)]


def _average(layer_map: LayerMap, _num_layers: int) -> list[list[int]]:
    """Take all layers that use the set."""
    uses = range(num_unique(layer_map))
    return [[depth for depth, label in enumerate(layer_map) if label == group] for group in uses]


_RULES: Mapping[str, Callable[[LayerMap, int], list[list[int]]]] = {
    "stepwise": _stepwise,
    "average": _average,
    "first": _first,
}
INITS = tuple(_RULES)


def source_layers(init: str, layer_map: LayerMap, num_layers: int) -> list[list[int]]:
    """Choose the trained layers of each parameter set.

    Args:
        init: one of ``INITS``.
        layer_map: the map of the shared stack, with N labels.
        num_layers: L, the number of trained layers.

    Returns:
        For each set, the layers from 0 whose mean fills it.

    Raises:
        SharingError: a set needs a layer that the trained stack does not have.
    """
    chosen = _RULES[init](layer_map, num_layers)
    beyond = [layer for layers in chosen for layer in layers if layer >= num_layers]
    if beyond:
        raise SharingError(
            f"--init {init} needs layer {max(beyond)} for a map of {len(layer_map)} layers, but the checkpoint has the "
            f"layers 0 to {num_layers - 1}; allowed: --init stepwise, or at most {num_layers} layers"
        )
    return chosen
