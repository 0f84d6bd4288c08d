"""The pictures of a study: BLEU against size and speed, learning curves, layer maps."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairseq_sharing.files import inside
from fairseq_sharing.reporting.expert_figure import expert_use
from fairseq_sharing.reporting.map_history import draw_map_history
from fairseq_sharing.reporting.study import STACKS, Row, scored_sets
from fairseq_sharing.reporting.tables import machine, titles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 160
# Colours that readers with any form of colour blindness tell apart, each with a marker of its own.
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
_SETS = ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999")
_POINTS_APART = 8.0  # between the markers of models of one size or speed, in typographic points
_PANEL_POINTS = 150.0  # about as wide as the data of a panel
_LEAST_EXTENT = 0.1  # of an axis, as a fraction of its middle: 0.2% between two sizes is to look as small as it is
_SETTLED = 0.1  # fraction of the updates after which the axis of the learning curves holds all of a curve


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
            _bleu_by_parameters,
            f"BLEU against unique parameters, by test set. {bars} Models of (nearly) one size stand side by side.",
        ),
        (
            "bleu_by_speed.png",
            lambda rows: _bleu_by_speed(measured, len(rows)),
            f"BLEU against training speed, by test set.{only} {bars} Models of (nearly) one speed stand side by side.",
        ),
        (
            "learning_curves.png",
            _learning_curves,
            "Validation loss against updates, a line a seed. The first tenth of the updates may lie above the picture.",
        ),
        (
            "layer_maps.png",
            _layer_maps,
            "Which parameter set each layer uses, input at the left: layers of one number and colour share"
            " their parameters. Encoder and decoder have sets of their own. Where each seed found its own map: the"
            " first's.",
        ),
        (
            "map_history.png",
            draw_map_history,
            "How the layer maps changed while training: at each update, layers of one colour share their parameters;"
            " the colour is that of the first of them. Grey: not trained yet.",
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


def _styles(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Give each row its colour and marker by strategy; rows of one strategy differ in line and filling."""
    styles: list[dict[str, Any]] = []
    used: dict[str, int] = {}
    for row in rows:
        colour, marker = _STYLES.get(row.strategy, _STYLES["custom"])
        turn = used[row.strategy] = used.get(row.strategy, -1) + 1
        styles.append(
            {
                "color": colour,
                "marker": marker,
                "linestyle": _LINES[turn % len(_LINES)],
                "fillstyle": _FILLS[turn % len(_FILLS)],
            }
        )
    return styles


def _new_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _finish(axes: Axes) -> None:
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _add_legend(figure: Figure, order: Sequence[str]) -> None:
    """Put one legend of all panels below them, never over the data."""
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


def _bleu_by_parameters(rows: Sequence[Row]) -> Figure | None:
    sizes = [float(row["parameters"]["unique"]) for row in rows]
    return _bleu_panels(rows, [(size, None) for size in sizes], "unique parameters")


def _bleu_by_speed(rows: Sequence[Row], of: int) -> Figure | None:
    """Draw some rows ``of`` so many; none where a single one is left, which would be compared with nothing."""
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
    figure = _new_figure(max(5.0, 3.6 * columns), 3.1 * lines + 0.4 + 0.22 * len(rows) / max(1, columns))
    panels = figure.subplots(lines, columns, squeeze=False)
    offsets = _offsets(xs)
    low, high = _extent(xs)
    for index, panel in enumerate(panels.flat):
        if index >= len(tests):
            panel.set_visible(False)
            continue
        test = tests[index]
        for row, x, offset, style, title in zip(rows, xs, offsets, _styles(rows), titles(rows), strict=True):
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
        _finish(panel)
    _add_legend(figure, titles(rows))
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
    # matplotlib leaves shifted points out of the limits.
    spread = x[1] or 0.0
    axes.update_datalim([(x[0] - spread, y - bar[0]), (x[0] + spread, y + bar[1])])
    axes.autoscale_view()


def _bar(row: Row, test: str) -> tuple[float, float]:
    """Give the length of the error bar below and above the mean."""
    bleu = row.score(test, "bleu")
    assert bleu is not None
    if bleu.deviation is not None:
        return bleu.deviation, bleu.deviation
    low, high = next(result["scores"][test]["bleu_interval"] for result in row.results if test in result["scores"])
    return max(0.0, bleu.mean - low), max(0.0, high - bleu.mean)


def _offsets(xs: Sequence[tuple[float, float | None] | None]) -> list[float]:
    """Move points that would hide each other sideways, as little as possible and keeping their order.

    Returns:
        The way of each point, in typographic points.
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
    """Give the ends of what an axis shows of these values, at least."""
    values = [x[0] for x in xs if x is not None] or [1.0]
    low, high = min(values), max(values)
    missing = max(0.0, (_LEAST_EXTENT * (low + high) / 2 or 1.0) - (high - low))
    return low - missing / 2, high + missing / 2


def _start(cluster: Sequence[tuple[float, int]]) -> float:
    """Place the first point of a cluster, whose points stand evenly around their mean position."""
    mean = sum(position for position, _ in cluster) / len(cluster)
    return mean - _POINTS_APART * (len(cluster) - 1) / 2


def _learning_curves(rows: Sequence[Row]) -> Figure | None:
    from matplotlib.ticker import StrMethodFormatter

    figure = _new_figure(7.0, 4.2 + 0.12 * len(rows))
    axes = figure.subplots()
    settled: list[float] = []
    last = max((max(_curve(result)[0], default=0) for row in rows for result in row.results), default=0)
    for row, style, title in zip(rows, _styles(rows), titles(rows), strict=True):
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
    room = 0.05 * (max(settled) - min(settled) or 1.0)
    axes.set_ylim(min(settled) - room, max(settled) + room)
    axes.set_xlim(left=0)
    axes.set_xlabel("updates")
    axes.set_ylabel("validation loss (base 2)")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    _finish(axes)
    _add_legend(figure, titles(rows))
    return figure


def _curve(result: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Read a result's validations: updates and losses, without those whose loss was no number."""
    valid = result.get("valid") or {}
    points = [
        (updates, loss)
        for updates, loss in zip(valid.get("updates", ()), valid.get("loss", ()), strict=True)
        if loss is not None
    ]
    return [updates for updates, _ in points], [loss for _, loss in points]


def _layer_maps(rows: Sequence[Row]) -> Figure | None:
    from matplotlib.patches import Rectangle

    stacks = [stack for stack in STACKS if any(row["layer_map"].get(stack) for row in rows)]
    if not stacks:
        return None
    longest = {stack: max(len(row["layer_map"].get(stack, ())) for row in rows) for stack in stacks}
    names = titles(rows)
    gap = 1.5  # cells between the stacks
    cells = sum(longest.values()) + gap * (len(stacks) - 1)
    cell = min(0.34, 11.0 / cells)  # inches
    margin = 0.082 * max(map(len, names)) + 0.15  # inches, for the names
    width, height = margin + cell * cells + 0.15, cell * 1.35 * len(rows) + 0.75
    figure = _new_figure(width, height)
    figure.set_layout_engine("none")
    axes = figure.add_axes((margin / width, 0.08 / height, cell * cells / width, 1 - 0.62 / height))
    left = 0.0
    for stack in stacks:
        axes.text(left + longest[stack] / 2, -0.95, stack, ha="center", va="bottom", fontsize=10)
        for layer in range(longest[stack]):
            if cell > 0.2 or (layer + 1) % 6 == 0 or layer == 0:
                axes.text(
                    left + layer + 0.5,
                    -0.12,
                    str(layer + 1),
                    ha="center",
                    va="bottom",
                    fontsize=7,
                    color="#555555",
                )
        for line, row in enumerate(rows):
            labels = row["layer_map"].get(stack, ())
            colours = _set_colours(max(labels, default=-1) + 1)
            for layer, label in enumerate(labels):
                place = (left + layer, line * 1.35)
                axes.add_patch(Rectangle(place, 1, 1, facecolor=colours[label], edgecolor="white", linewidth=1.2))
                if cell > 0.15:
                    axes.text(
                        place[0] + 0.5,
                        place[1] + 0.52,
                        str(label),
                        ha="center",
                        va="center",
                        fontsize=min(9.0, 30 * cell),
                        color=_ink(colours[label]),
                    )
        left += longest[stack] + gap
    for line, name in enumerate(names):
        axes.text(-0.35, line * 1.35 + 0.52, name, ha="right", va="center", fontsize=9)
    axes.set_xlim(0, cells)
    axes.set_ylim(1.35 * len(rows), -0.15)
    axes.set_axis_off()
    return figure


def _set_colours(count: int) -> list[str]:
    """Give each parameter set a colour; more than there are named ones are steps of a colour-blind-safe scale."""
    if count <= len(_SETS):
        return list(_SETS[:count])
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["viridis"](step / (count - 1))) for step in range(count)]


def _ink(background: str) -> str:
    """Choose black or white text by the relative luminance of what it stands on (WCAG 2.1)."""
    red, green, blue = (int(background[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return "black" if 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 > 0.18 else "white"
