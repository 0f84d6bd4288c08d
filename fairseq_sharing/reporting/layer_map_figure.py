"""Draw the layer maps of all rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fairseq_sharing.colors import ink, set_colors
from fairseq_sharing.reporting.plot_style import new_figure, widest
from fairseq_sharing.reporting.results import STACKS, Row
from fairseq_sharing.reporting.tables import titles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GAP = 1.5  # cells between the stacks
_LINE = 1.35  # cells per row
_LARGEST_CELL = 0.34  # inches
_WIDTH = 12.0  # inches, at most, unless the names need more
_NAME_SIZE = 9  # typographic points


def layer_maps(rows: Sequence[Row]) -> Figure | None:
    """Draw the parameter set of each layer, one line per row; return None if no row has a map."""
    stacks = [stack for stack in STACKS if any(row["layer_map"].get(stack) for row in rows)]
    if not stacks:
        return None
    longest = {stack: max(len(row["layer_map"].get(stack, ())) for row in rows) for stack in stacks}
    names = titles(rows)
    cells = sum(longest.values()) + _GAP * (len(stacks) - 1)
    margin = widest(names, _NAME_SIZE) + 0.3  # inches, for the names
    cell = min(_LARGEST_CELL, max(4.0, _WIDTH - margin - 0.15) / cells)
    # A stack's title needs more room than a few cells offer.
    width, height = margin + max(cell * cells, 1.6) + 0.15, cell * _LINE * len(rows) + 0.65
    figure = new_figure(width, height)
    figure.set_layout_engine("none")
    axes = figure.add_axes((margin / width, 0.08 / height, cell * cells / width, 1 - 0.58 / height))
    left = 0.0
    for stack in stacks:
        _stack(axes, [row["layer_map"].get(stack, ()) for row in rows], stack, left, longest[stack], cell)
        left += longest[stack] + _GAP
    for line, name in enumerate(names):
        place = (-0.1 / cell, line * _LINE + 0.52)
        axes.text(*place, name, ha="right", va="center", fontsize=_NAME_SIZE)
    axes.set_xlim(0, cells)
    axes.set_ylim(_LINE * len(rows), -0.15)
    axes.set_axis_off()
    return figure


def _stack(axes: Axes, maps: Sequence[Sequence[int]], title: str, left: float, longest: int, cell: float) -> None:
    """Draw the maps of one stack, from a cell on; a cell is ``cell`` inches wide."""
    from matplotlib.patches import Rectangle

    centered: dict[str, Any] = {"ha": "center", "va": "bottom"}
    axes.text(left + longest / 2, -0.3 / cell, title, fontsize=10, **centered)
    for layer in range(longest):
        if cell > 0.2 or (layer + 1) % 6 == 0 or layer == 0:
            place = left + layer + 0.5, -0.1 / cell
            axes.text(*place, str(layer + 1), fontsize=7, color="#555555", **centered)
    for line, labels in enumerate(maps):
        colors = set_colors(max(labels, default=-1) + 1)
        for layer, label in enumerate(labels):
            x, y = left + layer, line * _LINE
            axes.add_patch(Rectangle((x, y), 1, 1, facecolor=colors[label], edgecolor="white", linewidth=1.2))
            if cell > 0.15:
                size, color = min(9.0, 30 * cell), ink(colors[label])
                axes.text(x + 0.5, y + 0.52, str(label), ha="center", va="center", fontsize=size, color=color)
