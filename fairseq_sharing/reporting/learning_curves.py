"""Draw learning curves: validation loss against updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fairseq_sharing.reporting.plot_style import add_legend, finish, new_figure, row_styles
from fairseq_sharing.reporting.results import Row
from fairseq_sharing.reporting.tables import titles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SETTLED = 0.1  # the y-axis covers all losses after this fraction of the updates


def learning_curves(rows: Sequence[Row]) -> Figure | None:
    """Draw validation loss against updates, one line per seed; return None if there are no losses."""
    from matplotlib.ticker import StrMethodFormatter

    figure = new_figure(7.0, 4.2 + 0.12 * len(rows))
    axes = figure.subplots()
    settled: list[float] = []
    last = max((max(_curve(result)[0], default=0) for row in rows for result in row.results), default=0)
    for row, style, title in zip(rows, row_styles(rows), titles(rows), strict=True):
        for result in row.results:
            updates, losses = _curve(result)
            if not updates:
                continue
            axes.plot(
                updates,
                losses,
                color=style["color"],
                linestyle=style["linestyle"],
                linewidth=1.4,
                marker=style["marker"],
                fillstyle=style["fillstyle"],
                markersize=5,
                markevery=max(1, len(updates) // 8),
                label=title,
            )
            settled += [loss for update, loss in zip(updates, losses, strict=True) if update >= _SETTLED * last]
    if not settled:
        return None
    margin = 0.05 * (max(settled) - min(settled) or 1.0)
    axes.set_ylim(min(settled) - margin, max(settled) + margin)
    axes.set_xlim(left=0)
    axes.set_xlabel("updates")
    axes.set_ylabel("validation loss (base 2)")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    finish(axes)
    add_legend(figure, titles(rows))
    return figure


def _curve(result: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Return the updates and losses of a result's validations, without losses that are not finite."""
    valid = result.get("valid") or {}
    points = [
        (updates, loss)
        for updates, loss in zip(valid.get("updates", ()), valid.get("loss", ()), strict=True)
        if loss is not None
    ]
    return [updates for updates, _ in points], [loss for _, loss in points]
