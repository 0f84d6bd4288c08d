"""Style the figures: one color and one shape per row, plain axes, one legend below all panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairseq_sharing.colors import set_colors
from fairseq_sharing.files import inside
from fairseq_sharing.reporting.results import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 120
SUFFIXES = (".png", ".pdf", ".svg")

_SKY, _ORANGE, _GREEN, _YELLOW, _BLUE, _VERMILION, _PURPLE, _GRAY = set_colors(8)
_STYLES = {
    "none": ("#000000", "o"),
    "universal": (_PURPLE, "s"),
    "sequence": (_ORANGE, "^"),
    "cycle": (_BLUE, "D"),
    "cycle_rev": (_VERMILION, "v"),
    "sandwich": (_GREEN, "P"),
    "custom": (_SKY, "X"),
    "unshare": (_BLUE, "*"),
    "dynamic": (_PURPLE, "p"),
    "replay": (_GRAY, "<"),
}
_MOEUT = (_GREEN, ">")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "p", "<", ">", "x", "+", "1", "2")
_SCALES = {"*": 1.4}  # shapes that look smaller than others of their size
_LINES = ("-", "--", ":", "-.")
_FILLS = ("none", "full")  # hollow markers first: those that coincide stay visible
_LEGEND_SIZE = 9  # typographic points


def row_styles(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Assign a color and a shape to each row; no two rows have the same shape.

    The color and the shape of the first row of a strategy depend on the strategy, or on the model for MoEUT. Rows of
    the same strategy differ in their line style too.
    """
    own = [_MOEUT if row.is_moeut else _STYLES.get(row.strategy, _STYLES["custom"]) for row in rows]
    reserved = {(marker, _FILLS[0]) for _, marker in own}
    others = [(marker, fill) for fill in _FILLS for marker in _MARKERS if (marker, fill) not in reserved]
    styles: list[dict[str, Any]] = []
    used: set[tuple[str, str]] = set()
    turns: dict[tuple[str, str], int] = {}
    for color, marker in own:
        shape = (marker, _FILLS[0])
        if shape in used:
            shape = next((other for other in others if other not in used), shape)
        used.add(shape)
        turn = turns[color, marker] = turns.get((color, marker), -1) + 1
        styles.append(line_style(color, shape[0], turn, shape[1]))
    return styles


def line_style(color: str, marker: str, turn: int, fill: str = _FILLS[0]) -> dict[str, Any]:
    """Return the arguments of a line in matplotlib; lines of the same color differ in their turn."""
    return {
        "color": color,
        "marker": marker,
        "fillstyle": fill,
        "markeredgewidth": 1.4,
        "linestyle": _LINES[turn % len(_LINES)],
    }


def sized(style: Mapping[str, Any], size: float) -> dict[str, Any]:
    """Add the size of the marker, in typographic points, to a line style."""
    return {**style, "markersize": size * _SCALES.get(style["marker"], 1.0)}


def plain_styles(count: int) -> list[dict[str, Any]]:
    """Return styles of lines that have no strategy."""
    colors = (_BLUE, _VERMILION, _GREEN, _PURPLE, _ORANGE, _SKY, "#000000", _GRAY)
    return [line_style(colors[i % len(colors)], _MARKERS[i % len(_MARKERS)], i // len(colors)) for i in range(count)]


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


def widest(texts: Sequence[str], size: float) -> float:
    """Return the width of the widest text, in inches.

    Args:
        texts: the texts.
        size: font size in typographic points.
    """
    from matplotlib.textpath import TextPath

    ends = (TextPath((0, 0), text, size=size).vertices for text in texts if text.strip())
    return max((float(vertices[:, 0].max()) for vertices in ends), default=0.0) / 72


def legend_columns(labels: Sequence[str], width: float) -> int:
    """Return how many columns of a legend fit a figure of this width, in inches."""
    return max(1, min(len(labels), int(width / (0.6 + widest(labels, _LEGEND_SIZE)))))


def add_legend(figure: Figure, entries: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Add one legend for all panels below them, never over the data.

    Args:
        figure: the figure.
        entries: label and line style of each row.
    """
    from matplotlib.lines import Line2D

    labels = [label for label, _ in entries]
    figure.legend(
        [Line2D([], [], **style) for _, style in entries],
        labels,
        loc="outside lower center",
        ncols=legend_columns(labels, figure.get_figwidth()),
        frameon=False,
        fontsize=_LEGEND_SIZE,
    )


def save_figure(figure: Figure, folder: Path, name: str) -> None:
    """Write a figure as PNG, PDF and SVG; equal figures give equal files.

    Args:
        figure: the figure.
        folder: the output directory.
        name: file name without suffix.
    """
    import matplotlib as mpl

    # Omit versions and dates. The salt replaces random names in SVG. PDF embeds TrueType fonts, as publishers require.
    metadata: dict[str, dict[str, Any]] = {
        ".png": {"Software": None},
        ".pdf": {"Creator": None, "Producer": None, "CreationDate": None},
        ".svg": {"Creator": None, "Date": None},
    }
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the same layout in all formats
    with mpl.rc_context({"svg.hashsalt": "fairseq-sharing", "pdf.fonttype": 42}):
        for suffix in SUFFIXES:
            figure.savefig(inside(folder, name + suffix), dpi=DPI, metadata=metadata[suffix])
