"""Draw layer maps over time: one panel per run and stack, one bar per layer, one color per parameter set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fairseq_sharing.colors import set_colors
from fairseq_sharing.reporting.plot_style import new_figure
from fairseq_sharing.reporting.results import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FROZEN = "#DDDDDD"


def draw_map_history(rows: Sequence[Row]) -> Figure | None:
    """Draw the maps of every run that changed its map; return None if there is no such run."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    runs = [result for row in rows for result in row.results if (result.get("map_history") or {}).get("changes")]
    if not runs:
        return None
    stacks = list(dict.fromkeys(stack for result in runs for stack in result["layers"]))
    deepest = max(max(result["layers"].values()) for result in runs)
    figure = new_figure(4.8 * len(stacks) + 0.8, (0.16 * deepest + 0.42) * len(runs) + 0.6)
    panels = figure.subplots(len(runs), len(stacks), squeeze=False, sharex=True)
    for line, result in zip(panels, runs, strict=True):
        for panel, stack in zip(line, stacks, strict=True):
            layers = result["layers"].get(stack, 0)
            if not layers:
                panel.set_visible(False)
                continue
            colors = set_colors(layers)
            for layer in range(layers):
                spans = _spans(result, stack, layer)
                panel.broken_barh(
                    [(start, end - start) for start, end, _ in spans],
                    (layer + 0.55, 0.9),
                    facecolors=[_FROZEN if root is None else colors[root] for _, _, root in spans],
                )
            panel.set_ylim(layers + 0.5, 0.5)
            panel.yaxis.set_major_locator(MaxNLocator(min(layers, 12), integer=True))
            panel.set_title(f"{result['run']}, seed {result['seed']}: {stack}", fontsize=9)
            panel.tick_params(labelsize=8)
            for side in ("top", "right"):
                panel.spines[side].set_visible(False)
    panels[0][0].set_xlim(0, max(result["updates"] for result in runs))
    panels[0][0].xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    for panel in panels[-1]:
        panel.set_xlabel("updates", fontsize=9)
    for line in panels:
        line[0].set_ylabel("layer", fontsize=9)
    return figure


def _spans(result: dict[str, Any], stack: str, layer: int) -> list[tuple[int, int, int | None]]:
    """List the spans of a layer: first update, last update, first layer with the same set (None while frozen)."""
    history = result["map_history"]
    moments = [(0, history["start"]), *((change["update"], change["after"]) for change in history["changes"])]
    spans: list[tuple[int, int, int | None]] = []
    for (start, shared), (end, _) in zip(moments, [*moments[1:], (result["updates"], None)], strict=True):
        labels = shared[stack]["layer_map"]
        root = None if layer in shared[stack]["frozen"] else labels.index(labels[layer])
        if spans and spans[-1][2] == root:
            spans[-1] = (spans[-1][0], end, root)
        else:
            spans.append((start, end, root))
    return spans
