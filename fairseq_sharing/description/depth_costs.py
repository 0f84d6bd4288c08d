"""What a model costs at each depth that it is trained for."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from fairseq_sharing.depths.active import active_layers
from fairseq_sharing.depths.checkpoint import arguments_at
from fairseq_sharing.depths.options import read_depths
from fairseq_sharing.depths.settings import describe
from fairseq_sharing.description.counts import build_without_storage, measure


@dataclass(frozen=True)
class DepthCost:
    """The costs of one depth.

    Args:
        depth: the number of layers of each stack.
        active: the layers that run, from 0, of each stack.
        parameters: unique parameters of the model at this depth.
        macs: MACs of one forward pass over one sentence pair.
    """

    depth: dict[str, int]
    active: dict[str, tuple[int, ...]]
    parameters: int
    macs: int


def costs_of_depths(args: Namespace, vocabulary: int, length: int) -> list[DepthCost]:
    """Count the parameters and MACs of every depth that a configuration trains; none without several depths.

    Args:
        args: fairseq's arguments.
        vocabulary: size of the joined dictionary.
        length: source and target tokens of the sentence pair.
    """
    model = build_without_storage(args, vocabulary)
    sharing = {path.split(".")[0]: shared for path, shared in model.sharing.items()}
    depths = read_depths(args, sharing)
    found = []
    for setting in depths.settings if depths else ():
        active = {
            stack: active_layers(shared.layer_map, setting[stack], "--depths") for stack, shared in sharing.items()
        }
        described = measure("", Namespace(**arguments_at(vars(args), sharing, active)), vocabulary, length)
        found.append(DepthCost(dict(setting), active, sum(described.unique.values()), described.macs))
    return found


def as_ranges(layers: Sequence[int]) -> str:
    """Format layers in ascending order: ``0-3 8-11``."""
    ranges: list[list[int]] = []
    for layer in layers:
        if ranges and layer == ranges[-1][1] + 1:
            ranges[-1][1] = layer
        else:
            ranges.append([layer, layer])
    return " ".join(f"{first}-{last}" if first < last else str(first) for first, last in ranges)


def depth_table(costs: Sequence[DepthCost]) -> Table:
    """List the costs of each depth, with MACs relative to all layers."""
    table = Table(title="depths, and the layers that run at each (from 0)")
    table.add_column("depth")
    for stack in costs[0].active:
        table.add_column(f"{stack} layers")
    for column in ("unique parameters", "MACs per sentence", "of all layers"):
        table.add_column(column, justify="right")
    for cost in costs:
        layers = [as_ranges(active) for active in cost.active.values()]
        share = f"{100 * cost.macs / costs[-1].macs:.0f}%"
        table.add_row(describe(cost.depth), *layers, f"{cost.parameters:,}", f"{cost.macs:,}", share)
    return table
