"""Draw learning curves: validation loss and perplexity against updates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fairseq_sharing.reporting.plot_style import add_legend, finish, legend_columns, new_figure, row_styles, sized
from fairseq_sharing.reporting.results import Row
from fairseq_sharing.reporting.tables import titles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_METRICS = {"loss": "validation loss (base 2)", "perplexity": "validation perplexity"}
_MARKERS = 5  # markers per curve and panel
_MARKER_SIZE = 5.0  # typographic points
_DECADE = 5.0  # perplexities with a larger ratio are drawn on a logarithmic axis


@dataclass(frozen=True)
class Run:
    """One row of the legend.

    Attributes:
        title: its name.
        style: its line style.
        seeds: ``updates``, ``loss`` and ``perplexity`` of the validations, per seed; None for a value that is not
            finite.
    """

    title: str
    style: Mapping[str, Any]
    seeds: Sequence[Mapping[str, Sequence[float | None]]]

    def line(self) -> dict[str, Any]:
        """Return the style of its lines."""
        return {**sized(self.style, _MARKER_SIZE), "linewidth": 1.3}

    def curves(self, metric: str) -> list[tuple[list[float], list[float]]]:
        """Return the updates and the finite values of every seed that has any."""
        found = []
        for valid in self.seeds:
            pairs = zip(valid.get("updates", ()), valid.get(metric, ()), strict=False)
            points = [(update, value) for update, value in pairs if update is not None and value is not None]
            if points:
                found.append(([update for update, _ in points], [value for _, value in points]))
        return found


def learning_curves(rows: Sequence[Row]) -> Figure | None:
    """Draw loss and perplexity against updates, one line per seed; return None if there are no losses."""
    return draw_curves(
        [
            Run(title, style, [result.get("valid") or {} for result in row.results])
            for title, style, row in zip(titles(rows), row_styles(rows), rows, strict=True)
        ]
    )


def draw_curves(runs: Sequence[Run]) -> Figure | None:
    """Draw one column of panels per metric: all updates, and below them the second half, on axes that cover it."""
    metrics = [metric for metric in _METRICS if any(run.curves(metric) for run in runs)]
    if not metrics:
        return None
    updates = [update for run in runs for curve in run.curves(metrics[0]) for update in curve[0]]
    half = max(updates) / 2
    starts = [0.0, half] if any(update > half for update in updates) and min(updates) < half else [0.0]
    width = max(6.0, 5.4 * len(metrics))
    entries = [(run.title, run.line()) for run in runs if run.curves(metrics[0])]
    legend = math.ceil(len(entries) / legend_columns([title for title, _ in entries], width))
    figure = new_figure(width, 3.2 * len(starts) + 0.2 * legend + 0.2)
    panels = figure.subplots(len(starts), len(metrics), squeeze=False)
    for start, line in zip(starts, panels, strict=True):
        for metric, panel in zip(metrics, line, strict=True):
            _panel(panel, runs, metric, start)
            if len(starts) > 1:
                panel.set_title("second half of the updates" if start else "all updates", fontsize=10)
    add_legend(figure, entries)
    return figure


def _panel(axes: Axes, runs: Sequence[Run], metric: str, start: float) -> None:
    from matplotlib.ticker import StrMethodFormatter

    values: list[float] = []
    last = max(xs[-1] for run in runs for xs, _ in run.curves(metric))
    margin = 0.02 * (last - start)
    left = max(0.0, start - margin)
    for place, run in enumerate(runs):
        for xs, ys in run.curves(metric):
            step = max(1, round(sum(x >= start for x in xs) / _MARKERS))
            # The markers of different rows are at different validations, so that fewer coincide.
            axes.plot(xs, ys, markevery=(place % step, step), **run.line())
            values += _shown(xs, ys, left)
    axes.set_xlim(left, last + margin)
    axes.set_xlabel("updates")
    _set_height(axes, values, metric)
    axes.set_ylabel(_METRICS[metric])
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    finish(axes)


def _shown(xs: Sequence[float], ys: Sequence[float], start: float) -> list[float]:
    """Return the values from an update on, and the value of the line at that update."""
    shown = [y for x, y in zip(xs, ys, strict=True) if x >= start]
    for x0, y0, x1, y1 in zip(xs, ys, xs[1:], ys[1:], strict=False):
        if x0 < start < x1:
            shown.append(y0 + (y1 - y0) * (start - x0) / (x1 - x0))
    return shown


def _set_height(axes: Axes, values: Sequence[float], metric: str) -> None:
    """Let the y-axis cover the values, with logarithmic ticks where perplexities differ by a large factor."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    if not values:
        return
    low, high = min(values), max(values)
    if metric == "perplexity" and low > 0 and high / low > _DECADE:
        axes.set_yscale("log")
        axes.set_ylim(low / (high / low) ** 0.06, high * (high / low) ** 0.06)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        margin = 0.06 * (high - low or 1.0)
        axes.set_ylim(low - margin, high + margin)
