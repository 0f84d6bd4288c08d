"""Draw scores against size and speed, one panel per test set."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from fairseq_sharing.reporting.metrics import METRICS
from fairseq_sharing.reporting.plot_style import add_legend, finish, legend_columns, new_figure, row_styles, sized
from fairseq_sharing.reporting.point_labels import Point, add_labels
from fairseq_sharing.reporting.results import Row, Spread, scored_sets
from fairseq_sharing.reporting.tables import titles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKER_SIZE = 7.0  # typographic points
_MARGIN = 0.1  # of the extent of an axis, on either side
_LEAST_WIDTH = 0.1  # least extent of the x-axis relative to its center, so that 0.2% looks small
_LEAST_HEIGHT = 0.5  # least extent of the y-axis, so that rounding looks small


def score_by_parameters(rows: Sequence[Row], metric: str) -> Figure:
    """Draw the scores against unique parameters.

    Args:
        rows: the experiments.
        metric: key of ``METRICS``.
    """
    sizes = [Spread.of([float(result["parameters"]["unique"]) for result in row.results]) for row in rows]
    return _panels(rows, metric, sizes, "unique parameters")


def score_by_speed(rows: Sequence[Row], metric: str, comparable: Collection[str]) -> Figure | None:
    """Draw the scores against training speed.

    Args:
        rows: the experiments.
        metric: key of ``METRICS``.
        comparable: the names of those whose speeds are comparable.

    Returns:
        The figure; None if there are no speeds, or only one of several experiments is left to draw.
    """
    speeds = [row.speed if row.run in comparable else None for row in rows]
    if sum(speed is not None for speed in speeds) < min(2, len(rows)):
        return None
    return _panels(rows, metric, speeds, "training speed (target tokens/s)")


def _panels(rows: Sequence[Row], metric: str, xs: Sequence[Spread | None], x_label: str) -> Figure:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    tests = scored_sets(rows)
    # The number of a row is that of its line in the table, in every figure.
    entries = [
        (f"{number}  {title}", {**sized(style, _MARKER_SIZE), "linestyle": "none"})
        for number, (title, style) in enumerate(zip(titles(rows), row_styles(rows), strict=True), 1)
    ]
    shown = [entry for entry, x in zip(entries, xs, strict=True) if x is not None]
    columns = min(3, len(tests))
    lines = math.ceil(len(tests) / columns)
    width = max(6.0, 3.9 * columns)
    legend = math.ceil(len(shown) / legend_columns([label for label, _ in shown], width))
    figure = new_figure(width, 3.3 * lines + 0.2 * legend + 0.2)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    drawn: list[tuple[Axes, list[Point]]] = []
    for index, (panel, test) in enumerate(zip(panels, tests, strict=False)):
        points = []
        for number, (row, x, (_, style)) in enumerate(zip(rows, xs, entries, strict=True), 1):
            score = row.score(test, metric)
            if x is not None and score is not None:
                points.append(_point(panel, x, score, style, number))
        panel.set_xlim(*_limits([(point.x, point.x_bar) for point in points], relative=_LEAST_WIDTH))
        panel.set_ylim(*_limits([(point.y, point.y_bar) for point in points], least=_LEAST_HEIGHT))
        panel.set_title(test, fontsize=10)
        panel.set_xlabel(x_label)
        if index % columns == 0:
            panel.set_ylabel(f"{METRICS[metric].label}{' (lower is better)' * METRICS[metric].lower_is_better}")
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        finish(panel)
        drawn.append((panel, points))
    for panel in panels[len(tests) :]:
        panel.set_visible(False)
    add_legend(figure, shown)
    figure.draw_without_rendering()  # computes the layout, on which the places of the labels depend
    for panel, points in drawn:
        add_labels(panel, points)
    return figure


def _point(axes: Axes, x: Spread, y: Spread, style: dict[str, Any], number: int) -> Point:
    """Draw a point at its exact position, with the standard deviations over seeds as error bars."""
    axes.errorbar(
        [x.mean], [y.mean], xerr=x.deviation or None, yerr=y.deviation, elinewidth=1.1, capsize=2.5, zorder=3, **style
    )
    return Point(x.mean, y.mean, x.deviation or 0.0, y.deviation or 0.0, style["markersize"], number)


def _limits(values: Sequence[tuple[float, float]], least: float = 0.0, relative: float = 0.0) -> tuple[float, float]:
    """Return the limits of an axis that covers all values with their error bars, given as half their length."""
    low = min((value - bar for value, bar in values), default=0.0)
    high = max((value + bar for value, bar in values), default=1.0)
    extent = max(high - low, least, relative * abs(low + high) / 2) or 1.0
    start = (low + high - extent) / 2
    if low >= 0:
        start = max(0.0, start)
    return start - _MARGIN * extent, start + (1 + _MARGIN) * extent
