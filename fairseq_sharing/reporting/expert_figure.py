"""Draw how often each layer of a model with expert banks chose each expert."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fairseq_sharing.reporting.plot_style import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Kinds of routers in the order of their use in a layer, and their labels.
_KINDS = {
    "self_attn_value": "self-attention, values",
    "self_attn_output": "self-attention, outputs",
    "encoder_attn_value": "cross-attention, values",
    "encoder_attn_output": "cross-attention, outputs",
    "ffn": "feed-forward",
}
_ROW = 0.22  # height per layer, in inches
_COLUMNS = 2  # panels side by side, so that the page shows their text at its size


def expert_use(experts: Mapping[str, Mapping[str, Any]], layer_maps: Mapping[str, Sequence[int]]) -> Figure | None:
    """Draw the choices in the last validation: one panel per kind of router, one row per layer, one column per expert.

    Args:
        experts: ``choices``, ``evenness`` and ``dead`` of each router (``decoder_ffn_3``: stack, kind, layer from 1),
            as ``training_log.summarize`` returns them.
        layer_maps: the parameter set of each layer, per stack.

    Returns:
        The figure; None if no choices were logged.
    """
    panels = _panels(experts)
    if not panels:
        return None
    columns = min(_COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    tallest = max(len(routers) for routers in panels.values())
    shares = {key: {layer: _shares(router) for layer, router in panels[key].items()} for key in panels}
    most = max(share for routers in shares.values() for line in routers.values() for share in line)
    figure = new_figure(5.4 * columns + 0.9, lines * (_ROW * tallest + 0.75) + 0.2)
    axes = figure.subplots(lines, columns, squeeze=False)
    for place, ((stack, kind), routers) in zip(axes.flat, panels.items(), strict=False):
        table = list(shares[stack, kind].values())
        image = place.imshow(table, aspect="auto", interpolation="nearest", cmap="viridis", vmin=0, vmax=most)
        _finish(place, f"{stack}: {_KINDS[kind]}", routers, layer_maps.get(stack, ()), tallest)
    for place in list(axes.flat)[len(panels) :]:
        place.set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.6, pad=0.01)
    bar.set_label("choices, relative to uniform use", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


def _shares(router: Mapping[str, Any]) -> list[float]:
    """Return how often each expert was chosen, relative to uniform use."""
    choices = router["choices"]
    return [len(choices) * count / max(1, sum(choices)) for count in choices]


def _panels(experts: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], dict[int, Mapping[str, Any]]]:
    """Group the routers by stack and kind, sorted by layer."""
    found: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for name, router in experts.items():
        match = re.fullmatch(rf"(encoder|decoder)_({'|'.join(_KINDS)})_(\d+)", name)
        if match and router.get("choices"):
            found.setdefault((match[1], match[2]), {})[int(match[3])] = router
    order = list(_KINDS)
    return {
        key: dict(sorted(found[key].items()))
        for key in sorted(found, key=lambda key: (key[0] != "encoder", order.index(key[1])))
    }


def _finish(
    axes: Axes, title: str, routers: Mapping[int, Mapping[str, Any]], layer_map: Sequence[int], tallest: int
) -> None:
    """Add the texts of a panel; all panels have the height of the tallest, so that their lines are equally high."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, fontsize=10)
    axes.set_xlabel("expert", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_yticks(range(len(routers)), [_line(number, layer_map) for number in routers])
    details = axes.secondary_yaxis("right")
    shown = [
        f"{100 * float(one['evenness']):.0f}% even, {100 * float(one['dead']):.0f}% dead" for one in routers.values()
    ]
    details.set_yticks(range(len(routers)), shown)
    details.tick_params(labelsize=8, length=0)
    axes.set_ylim(tallest - 0.5, -0.5)
    axes.spines["bottom"].set_position(("data", len(routers) - 0.5))
    for spine in (*axes.spines.values(), *details.spines.values()):
        spine.set_visible(False)


def _line(number: int, layer_map: Sequence[int]) -> str:
    """Label a layer with its number, its parameter set and the number of uses of that set so far."""
    if number > len(layer_map):
        return str(number)
    label = layer_map[number - 1]
    return f"{number}: set {label}, use {list(layer_map[:number]).count(label)}"
