"""The pictures of a study: BLEU against size and speed, learning curves, layer maps."""

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
    """Import the plotting library.

    Raises:
        ImportError: it is not installed.
    """
    import matplotlib  # noqa: F401


def draw(rows: Sequence[Row], folder: Path) -> list[tuple[str, str]]:
    """Write every picture that the results have data for, as PNG.

    Args:
        rows: the experiments, in order.
        folder: where the files go.

    Returns:
        File name and caption of each picture.
    """
    measured, name = _on_one_machine(rows)
    only = "" if len(measured) == len(rows) else f" Only what was trained on {name}: other speeds cannot be compared."
    bars = "Bars: standard deviation over seeds, or of a single seed the 95% bootstrap interval."
    pictures: list[tuple[str, Callable[[Sequence[Row]], Figure | None], str]] = [
        (
            "bleu_by_parameters.png",
            bleu_by_parameters,
            f"BLEU against unique parameters, by test set. {bars} Models of (nearly) one size stand side by side.",
        ),
        (
            "bleu_by_speed.png",
            lambda rows: bleu_by_speed(measured, len(rows)),
            f"BLEU against training speed, by test set.{only} {bars} Models of (nearly) one speed stand side by side.",
        ),
        (
            "learning_curves.png",
            learning_curves,
            "Validation loss against updates, a line a seed. The first tenth of the updates may lie above the picture.",
        ),
        (
            "layer_maps.png",
            layer_maps,
            "Which parameter set each layer uses, input at the left: layers of one number and color share"
            " their parameters. Encoder and decoder have sets of their own. Where each seed found its own map: the"
            " first's.",
        ),
        (
            "map_history.png",
            draw_map_history,
            "How the layer maps changed while training: at each update, layers of one color share their parameters;"
            " the color is that of the first of them. Gray: not trained yet.",
        ),
    ]
    for row, title in zip(rows, titles(rows), strict=True):
        if row.results[0].get("experts"):
            pictures.append(
                (
                    f"expert_use_{row.run}.png",
                    lambda _, row=row: expert_use(row["experts"], row["layer_map"]),  # type: ignore[misc]
                    f"How often each layer chose each expert in the last validation, {title}; first seed. A set is used"
                    " by several layers; dead experts were never chosen.",
                )
            )
    written = []
    for name, make, caption in pictures:
        figure = make(rows)
        if figure is not None:
            # No version or date in the file: equal results give equal bytes.
            figure.savefig(inside(folder, name), dpi=DPI, metadata={"Software": None})
            written.append((name, caption))
    return written


def _on_one_machine(rows: Sequence[Row]) -> tuple[list[Row], str]:
    """Keep the rows trained on the machine that trained most of them, and name it."""
    ((name, _),) = Counter(map(machine, rows)).most_common(1)
    return [row for row in rows if machine(row) == name], name
