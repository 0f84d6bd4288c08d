"""List the maps of a model: one row per stack, or one per component if components have maps of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fairseq_sharing.layer_map import PARTS, ComponentMap, LayerMap, StackSharing
from fairseq_sharing.parameter_sets import part_of


@dataclass(frozen=True)
class MapRow:
    """One map.

    Args:
        title: the stack, and the component if the map is that of a component.
        labels: N labels.
        uses: for each set in the map, by ascending label, the number of its uses; over both stacks if it spans both.
        labels_in_space: number of labels of all maps with the same sets.
        across_stacks: whether layers of the other stack use the same sets.
    """

    title: str
    labels: LayerMap
    uses: tuple[int, ...]
    labels_in_space: int
    across_stacks: bool = False


def map_rows(model: Any) -> list[MapRow]:
    """List the maps of a model with shared stacks, without components that its layers do not have."""
    sharing: Mapping[str, StackSharing] = model.sharing
    listed = [
        (stack, component)
        for stack, shared in sharing.items()
        for component in _maps(stack, shared, model.stacks[stack].layers)
    ]
    uses: dict[str, Counter[int]] = {}
    for stack, component in listed:
        uses.setdefault(_space(stack, component), Counter()).update(component.labels)
    rows = []
    for stack, component in listed:
        counted = uses[_space(stack, component)]
        rows.append(
            MapRow(
                stack if component.component == "layer" else f"{stack} {component.component}",
                component.labels,
                tuple(counted[label] for label in sorted(set(component.labels))),
                len(counted),
                bool(component.space),
            )
        )
    return rows


def _maps(stack: str, shared: StackSharing, layers: Any) -> Iterator[ComponentMap]:
    """List the maps of a stack: the layer map, or those of the components that its layers have."""
    if shared.scope == ("layer",) and not shared.components:
        yield ComponentMap("layer", shared.layer_map)
        return
    present = {part_of(name) for layer in layers for name, _ in layer.named_parameters(remove_duplicate=False)}
    own = tuple(range(len(shared.layer_map)))
    for part in PARTS[stack.split(".")[0]]:
        if part in present:
            yield shared.of_component(part) or ComponentMap(part, own)


def _space(stack: str, component: ComponentMap) -> str:
    return component.space or f"{stack} {component.component}"
