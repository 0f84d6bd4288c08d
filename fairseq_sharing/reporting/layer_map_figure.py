"""Draw the layer maps of all rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fairseq_sharing.colors import ink, set_colors
from fairseq_sharing.reporting.plot_style import new_figure
from fairseq_sharing.reporting.results import STACKS, Row
from fairseq_sharing.reporting.tables import titles

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def layer_maps(rows: Sequence[Row]) -> Figure | None:
    """Draw the parameter set of each layer, one line per row; return None if no row has a map."""
    from matplotlib.patches import Rectangle

    stacks = [stack for stack in STACKS if any(row["layer_map"].get(stack) for row in rows)]
    if not stacks:
        return None
    longest = {stack: max(len(row["layer_map"].get(stack, ())) for row in rows) for stack in stacks}
    names = titles(rows)
    gap = 1.5  # cells between the stacks
    cells = sum(longest.values()) + gap * (len(stacks) - 1)
    cell = min(0.34, 11.0 / cells)  # inches
    margin = 0.082 * max(map(len, names)) + 0.15  # inches, for the names
    width, height = margin + cell * cells + 0.15, cell * 1.35 * len(rows) + 0.75
    figure = new_figure(width, height)
    figure.set_layout_engine("none")
    axes = figure.add_axes((margin / width, 0.08 / height, cell * cells / width, 1 - 0.62 / height))
    left = 0.0
    for stack in stacks:
        axes.text(left + longest[stack] / 2, -0.95, stack, ha="center", va="bottom", fontsize=10)
        for layer in range(longest[stack]):
            if cell > 0.2 or (layer + 1) % 6 == 0 or layer == 0:
                axes.text(
                    left + layer + 0.5,
                    -0.12,
                    str(layer + 1),
                    ha="center",
                    va="bottom",
                    fontsize=7,
                    color="#555555",
                )
        for line, row in enumerate(rows):
            labels = row["layer_map"].get(stack, ())
            colors = set_colors(max(labels, default=-1) + 1)
            for layer, label in enumerate(labels):
                place = (left + layer, line * 1.35)
                axes.add_patch(Rectangle(place, 1, 1, facecolor=colors[label], edgecolor="white", linewidth=1.2))
                if cell > 0.15:
                    axes.text(
                        place[0] + 0.5,
                        place[1] + 0.52,
                        str(label),
                        ha="center",
                        va="center",
                        fontsize=min(9.0, 30 * cell),
                        color=ink(colors[label]),
                    )
        left += longest[stack] + gap
    for line, name in enumerate(names):
        axes.text(-0.35, line * 1.35 + 0.52, name, ha="right", va="center", fontsize=9)
    axes.set_xlim(0, cells)
    axes.set_ylim(1.35 * len(rows), -0.15)
    axes.set_axis_off()
    return figure
