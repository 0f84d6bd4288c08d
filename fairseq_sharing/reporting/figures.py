"""Draw the figures of a study: scores against size and speed, learning curves, layer maps."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fairseq_sharing.reporting.expert_figure import expert_use
from fairseq_sharing.reporting.layer_map_figure import layer_maps
from fairseq_sharing.reporting.learning_curves import learning_curves
from fairseq_sharing.reporting.map_history import draw_map_history
from fairseq_sharing.reporting.metrics import METRICS
from fairseq_sharing.reporting.notes import machine
from fairseq_sharing.reporting.plot_style import save_figure
from fairseq_sharing.reporting.results import Row
from fairseq_sharing.reporting.score_figures import score_by_parameters, score_by_speed
from fairseq_sharing.reporting.tables import titles

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(rows: Sequence[Row], folder: Path, metric: str = "bleu") -> list[tuple[str, str]]:
    """Write a PNG, PDF and SVG file for each figure that the results have data for.

    Args:
        rows: the experiments, in order.
        folder: the output directory.
        metric: key of ``METRICS``.

    Returns:
        PNG file name and caption of each figure.
    """
    ((place, _),) = Counter(map(machine, rows)).most_common(1)
    measured = [row for row in rows if machine(row) == place]
    only = "" if len(measured) == len(rows) else f" Only runs trained on {place}; other speeds are not comparable."
    score, stem = METRICS[metric].label, re.sub(r"\W", "", metric)
    numbers = f"Numbers are those of the legend; points that coincide share a label. {_bars(rows)}"
    changing = ", at the end of training" if any(row.schedule for row in rows) else ""
    pictures: list[tuple[str, Callable[[Sequence[Row]], Figure | None], str]] = [
        (
            f"{stem}_by_parameters",
            lambda rows: score_by_parameters(rows, metric),
            f"{score} against unique parameters{changing}, per test set. {numbers}",
        ),
        (
            f"{stem}_by_speed",
            lambda rows: score_by_speed(rows, metric, {row.run for row in measured}),
            f"{score} against training speed, per test set.{only} {numbers}",
        ),
        (
            "learning_curves",
            learning_curves,
            "Validation loss and perplexity against updates, one line per seed. Large ratios of perplexity have a"
            " logarithmic axis.",
        ),
        (
            "layer_maps",
            layer_maps,
            "The parameter set of each layer, with the input at the left. Layers with the same number and color share"
            " their parameters. Encoder and decoder have separate sets. If the seeds have different maps, the map of"
            " the first seed is shown.",
        ),
        (
            "map_history",
            draw_map_history,
            "Changes of the layer maps during training. At each update, layers with the same color share their"
            " parameters; each group has the color of its first layer. Gray: not trained yet. White: after the end of"
            " a shorter training.",
        ),
    ]
    for row, title in zip(rows, titles(rows), strict=True):
        if row.results[0].get("experts"):
            pictures.append(
                (
                    f"expert_use_{row.run}",
                    lambda _, row=row: expert_use(row["experts"], row["layer_map"]),  # type: ignore[misc]
                    f"How often each layer chose each expert in the last validation: {title}, first seed. Several"
                    " layers can use the same set. Dead experts were never chosen.",
                )
            )
    written = []
    for name, make, caption in pictures:
        figure = make(rows)
        if figure is not None:
            save_figure(figure, folder, name)
            written.append((f"{name}.png", caption))
    return written


def _bars(rows: Sequence[Row]) -> str:
    """Explain the error bars."""
    seeds = {len(row.results) for row in rows}
    if max(seeds) == 1:
        return "No error bars: one seed per row."
    few = " Rows with one seed have none." if 1 in seeds else ""
    return f"Error bars: standard deviation over seeds.{few}"
