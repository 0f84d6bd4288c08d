"""Style the figures: one color, marker and line per row, plain axes, one legend below all panels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fairseq_sharing.reporting.results import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colors that are distinguishable with any form of color blindness, each with its own marker.
# Source: Okabe & Ito 2008, "Color Universal Design".
_STYLES = {
    "none": ("#000000", "o"),
    "universal": ("#CC79A7", "s"),
    "sequence": ("#E69F00", "^"),
    "cycle": ("#0072B2", "D"),
    "cycle_rev": ("#D55E00", "v"),
    "sandwich": ("#009E73", "P"),
    "custom": ("#56B4E9", "X"),
    "unshare": ("#0072B2", "*"),
    "dynamic": ("#CC79A7", "h"),
    "replay": ("#999999", "p"),
}
_LINES = ("-", "--", ":", "-.")
_FILLS = ("full", "none", "left", "top")


def row_styles(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Assign a color and a marker to each row by strategy; rows of the same strategy differ in line and fill style."""
    styles: list[dict[str, Any]] = []
    used: dict[str, int] = {}
    for row in rows:
        color, marker = _STYLES.get(row.strategy, _STYLES["custom"])
        turn = used[row.strategy] = used.get(row.strategy, -1) + 1
        styles.append(
            {
                "color": color,
                "marker": marker,
                "linestyle": _LINES[turn % len(_LINES)],
                "fillstyle": _FILLS[turn % len(_FILLS)],
            }
        )
    return styles


def new_figure(width: float, height: float) -> Figure:
    """Create an empty figure; width and height are in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def finish(axes: Axes) -> None:
    """Add a grid to a panel and remove its frame."""
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def add_legend(figure: Figure, order: Sequence[str]) -> None:
    """Add one legend for all panels below them, never over the data."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    shown = [label for label in order if label in entries]
    longest = max(map(len, shown), default=1)
    columns = max(1, min(len(shown), int(figure.get_figwidth() / (0.55 + 0.07 * longest))))
    figure.legend(
        [entries[label] for label in shown],
        shown,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=9,
    )
