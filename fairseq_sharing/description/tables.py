"""Tables of a description for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from fairseq_sharing.colors import ink, set_colors
from fairseq_sharing.description.counts import COMPONENTS, Description
from fairseq_sharing.description.map_rows import MapRow
from fairseq_sharing.layer_map import num_unique


def map_line(row: MapRow, width: int = 0) -> Text:
    """Format a map as one colored line, with the uses of each set.

    Args:
        row: the map.
        width: width of the title.
    """
    line = Text(f"{row.title:{width}}  N={len(row.labels)} M={len(row.uses)}  ")
    colors = set_colors(row.labels_in_space)
    for label in row.labels:
        line.append(f" {label} ", style=f"{ink(colors[label])} on {colors[label]}")
    line.append(f"  uses {' '.join(map(str, row.uses))}{', across stacks' if row.across_stacks else ''}")
    return line


def main_table(models: Sequence[Description], vocabulary: int, length: int, memory: float | None) -> Table:
    """Compare the sizes, parameters, memory and MACs of models.

    Args:
        models: the models, starting with the described one.
        vocabulary: size of the joined dictionary.
        length: source and target tokens of the sentence pair.
        memory: the device memory in GB, if the memory of training was estimated.
    """
    table = Table(title=f"{models[0].name}: vocabulary {vocabulary:,}, {length} + {length} tokens")
    table.add_column("")
    for model in models:
        table.add_column(model.name, justify="right")

    def add(title: str, values: Sequence[int | None], unit: str = "") -> None:
        table.add_row(title, *("-" if value is None else f"{value:,}{unit}" for value in values))

    for stack in models[0].layer_map:
        add(f"{stack} layers N", [len(m.layer_map[stack]) for m in models])
        add(f"{stack} sets M", [num_unique(m.layer_map[stack]) for m in models])
    table.add_section()
    add("unique parameters", [sum(m.unique.values()) for m in models])
    for component in COMPONENTS:
        if any(m.unique[component] for m in models):
            add(f"  {component}", [m.unique[component] for m in models])
    if models[0].banks:
        add("active parameters", [m.active for m in models])
    add("effective parameters", [sum(m.effective.values()) for m in models])
    for component in COMPONENTS:
        if any(m.effective[component] != m.unique[component] for m in models):
            add(f"  {component}", [m.effective[component] for m in models])
    table.add_section()
    for part in ("weights", "gradients", "optimizer"):
        add(f"bytes of {part}", [m.bytes[part] for m in models])
    for activations in models[0].memory:
        estimates = [m.memory[activations] for m in models]
        at = next((f" at {e.tokens:,} tokens" for e in estimates if e), "")
        table.add_section()
        add(f"activations per token, {activations}", [None if e is None else e.activations_a_token for e in estimates])
        add(f"workspace{at}", [None if e is None else e.workspace for e in estimates])
        add(f"peak{at}", [None if e is None else e.peak for e in estimates])
        add(f"longest batch in {memory:g} GB", [None if e is None else e.longest_batch for e in estimates])
    table.add_section()
    add("MACs per sentence", [m.macs for m in models])
    add("MACs per token", [m.macs // length for m in models])
    return table


def bank_table(model: Description) -> Table:
    """List the expert banks of a model."""
    table = Table(title="expert banks, shared ones listed once")
    for column in ("bank", "experts", "active", "parameters"):
        table.add_column(column, justify="left" if column == "bank" else "right")
    for bank in model.banks:
        table.add_row(*(f"{bank[key]:,}" if key != "name" else bank[key] for key in bank))
    return table
