"""Draw the figures of a study: BLEU against size and speed, learning curves, layer maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fairseq_sharing.files import inside
from fairseq_sharing.reporting.bleu_figures import bleu_by_parameters, bleu_by_speed
from fairseq_sharing.reporting.expert_figure import expert_use
from fairseq_sharing.reporting.layer_map_figure import layer_maps
from fairseq_sharing.reporting.learning_curves import learning_curves
from fairseq_sharing.reporting.map_history import draw_map_history
from fairseq_sharing.reporting.results import Row
from fairseq_sharing.reporting.tables import machine, titles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 160


def require_matplotlib() -> None:
    """Import matplotlib.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib  # noqa: F401


def draw(rows: Sequence[Row], folder: Path) -> list[tuple[str, str]]:
    """Write a PNG file for each figure that the results have data for.

    Args:
        rows: the experiments, in order.
        folder: the output directory.

    Returns:
        File name and caption of each figure.
    """
    measured, name = _on_one_machine(rows)
    only = "" if len(measured) == len(rows) else f" Only runs trained on {name}; other speeds are not comparable."
    bars = "Error bars: standard deviation over seeds, or the 95% bootstrap interval of a single seed."
    pictures: list[tuple[str, Callable[[Sequence[Row]], Figure | None], str]] = [
        (
            "bleu_by_parameters.png",
            bleu_by_parameters,
            f"BLEU against unique parameters, per test set. {bars} Models of similar size are drawn side by side.",
        ),
        (
            "bleu_by_speed.png",
            lambda rows: bleu_by_speed(measured, len(rows)),
            f"BLEU against training speed, per test set.{only} {bars} Models of similar speed are drawn side by side.",
        ),
        (
            "learning_curves.png",
            learning_curves,
            "Validation loss against updates, one line per seed. The first 10% of the updates may exceed the axis.",
        ),
        (
            "layer_maps.png",
            layer_maps,
            "The parameter set of each layer, with the input at the left. Layers with the same number and color share"
            " their parameters. Encoder and decoder have separate sets. If the seeds have different maps, the map of"
            " the first seed is shown.",
        ),
        (
            "map_history.png",
            draw_map_history,
            "Changes of the layer maps during training. At each update, layers with the same color share their"
            " parameters; each group has the color of its first layer. Gray: not trained yet.",
        ),
    ]
    for row, title in zip(rows, titles(rows), strict=True):
        if row.results[0].get("experts"):
            pictures.append(
                (
                    f"expert_use_{row.run}.png",
                    lambda _, row=row: expert_use(row["experts"], row["layer_map"]),  # type: ignore[misc]
                    f"How often each layer chose each expert in the last validation: {title}, first seed. Several"
                    " layers can use the same set. Dead experts were never chosen.",
                )
            )
    written = []
    for name, make, caption in pictures:
        figure = make(rows)
        if figure is not None:
            # Omit version and date, so that equal results give identical files.
            figure.savefig(inside(folder, name), dpi=DPI, metadata={"Software": None})
            written.append((name, caption))
    return written


def _on_one_machine(rows: Sequence[Row]) -> tuple[list[Row], str]:
    """Return the rows trained on the most common machine, and the name of that machine."""
    ((name, _),) = Counter(map(machine, rows)).most_common(1)
    return [row for row in rows if machine(row) == name], name
