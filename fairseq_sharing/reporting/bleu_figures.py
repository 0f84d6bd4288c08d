"""Draw BLEU against size and speed, one panel per test set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fairseq_sharing.reporting.plot_style import add_legend, finish, new_figure, row_styles
from fairseq_sharing.reporting.results import Row, scored_sets
from fairseq_sharing.reporting.tables import titles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POINTS_APART = 8.0  # typographic points between markers that would overlap
_PANEL_POINTS = 150.0  # approximate width of a panel's data area, in typographic points
_LEAST_EXTENT = 0.1  # minimum extent of an axis relative to its center, so that 0.2% looks small


def bleu_by_parameters(rows: Sequence[Row]) -> Figure | None:
    """Draw BLEU against unique parameters."""
    sizes = [float(row["parameters"]["unique"]) for row in rows]
    return _bleu_panels(rows, [(size, None) for size in sizes], "unique parameters")


def bleu_by_speed(rows: Sequence[Row], of: int) -> Figure | None:
    """Draw BLEU against training speed.

    Args:
        rows: the experiments with comparable speeds.
        of: number of all experiments.

    Returns:
        The figure; None if there are no speeds, or only one of several experiments is left to draw.
    """
    if len(rows) < min(2, of):
        return None
    speeds = [(row.speed.mean, row.speed.deviation) if row.speed else None for row in rows]
    if not any(speeds):
        return None
    return _bleu_panels(rows, speeds, "training speed (target tokens/s)")


def _bleu_panels(rows: Sequence[Row], xs: Sequence[tuple[float, float | None] | None], x_label: str) -> Figure:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    tests = scored_sets(rows)
    columns = min(3, len(tests))
    lines = math.ceil(len(tests) / columns)
    figure = new_figure(max(5.0, 3.6 * columns), 3.1 * lines + 0.4 + 0.22 * len(rows) / max(1, columns))
    panels = figure.subplots(lines, columns, squeeze=False)
    offsets = _offsets(xs)
    low, high = _extent(xs)
    for index, panel in enumerate(panels.flat):
        if index >= len(tests):
            panel.set_visible(False)
            continue
        test = tests[index]
        for row, x, offset, style, title in zip(rows, xs, offsets, row_styles(rows), titles(rows), strict=True):
            bleu = row.score(test, "bleu")
            if x is not None and bleu is not None:
                _point(panel, x, bleu.mean, _bar(row, test), offset, {**style, "linestyle": "none"}, title)
        panel.set_title(test, fontsize=10)
        panel.set_xlabel(x_label)
        if index % columns == 0:
            panel.set_ylabel("BLEU")
        panel.margins(x=0.2, y=0.1)
        left, right = panel.get_xlim()
        panel.set_xlim(min(left, low), max(right, high))
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        finish(panel)
    add_legend(figure, titles(rows))
    return figure


def _point(
    axes: Axes,
    x: tuple[float, float | None],
    y: float,
    bar: tuple[float, float],
    offset: float,
    style: dict[str, Any],
    label: str,
) -> None:
    from matplotlib.transforms import ScaledTranslation

    figure = axes.get_figure()
    assert figure is not None
    shifted = axes.transData + ScaledTranslation(offset / 72, 0, figure.dpi_scale_trans)
    axes.errorbar(
        [x[0]],
        [y],
        xerr=x[1],
        yerr=[[bar[0]], [bar[1]]],
        label=label,
        transform=shifted,
        markersize=7,
        elinewidth=1.1,
        capsize=2.5,
        **style,
    )
    # matplotlib ignores shifted points when it computes the axis limits.
    spread = x[1] or 0.0
    axes.update_datalim([(x[0] - spread, y - bar[0]), (x[0] + spread, y + bar[1])])
    axes.autoscale_view()


def _bar(row: Row, test: str) -> tuple[float, float]:
    """Return the length of the error bar below and above the mean."""
    bleu = row.score(test, "bleu")
    assert bleu is not None
    if bleu.deviation is not None:
        return bleu.deviation, bleu.deviation
    low, high = next(result["scores"][test]["bleu_interval"] for result in row.results if test in result["scores"])
    return max(0.0, bleu.mean - low), max(0.0, high - bleu.mean)


def _offsets(xs: Sequence[tuple[float, float | None] | None]) -> list[float]:
    """Shift overlapping points sideways, as little as possible and without changing their order.

    Returns:
        The shift of each point, in typographic points.
    """
    placed = sorted((x[0], index) for index, x in enumerate(xs) if x is not None)
    low, high = _extent(xs)
    clusters: list[list[tuple[float, int]]] = []
    for value, index in placed:
        clusters.append([(_PANEL_POINTS * (value - low) / (high - low), index)])
        while len(clusters) > 1 and _start(clusters[-1]) < _start(clusters[-2]) + _POINTS_APART * len(clusters[-2]):
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    offsets = [0.0] * len(xs)
    for cluster in clusters:
        for place, (position, index) in enumerate(cluster):
            offsets[index] = _start(cluster) + _POINTS_APART * place - position
    return offsets


def _extent(xs: Sequence[tuple[float, float | None] | None]) -> tuple[float, float]:
    """Return the minimum range of an axis for these values."""
    values = [x[0] for x in xs if x is not None] or [1.0]
    low, high = min(values), max(values)
    missing = max(0.0, (_LEAST_EXTENT * (low + high) / 2 or 1.0) - (high - low))
    return low - missing / 2, high + missing / 2


def _start(cluster: Sequence[tuple[float, int]]) -> float:
    """Return the position of a cluster's first point; the points are evenly spaced around their mean position."""
    mean = sum(position for position, _ in cluster) / len(cluster)
    return mean - _POINTS_APART * (len(cluster) - 1) / 2
