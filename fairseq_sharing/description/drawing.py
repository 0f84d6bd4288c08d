"""Draw layer maps."""

from __future__ import annotations

from collections.abc import Mapping
from xml.sax.saxutils import escape

from fairseq_sharing.colors import ink, set_colors
from fairseq_sharing.layer_map import LayerMap, num_unique


def draw_maps(layer_maps: Mapping[str, LayerMap], cell: int = 44, sets: Mapping[str, int] | None = None) -> str:
    """Draw layer maps as SVG: one row per map, one cell per layer, one color per parameter set.

    Args:
        layer_maps: the layer map of each stack, or of each component of a stack.
        cell: width of a cell, in pixels.
        sets: the number of sets to choose colors for, if it is not that of the map itself.

    Returns:
        The SVG document.
    """
    margin = max([90, *(8 * len(title) + 18 for title in layer_maps)])
    header, row = 34, cell + 34
    width = margin + cell * max((len(m) for m in layer_maps.values()), default=0) + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{header + row * len(layer_maps)}" '
        'font-family="sans-serif" font-size="14" text-anchor="middle">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for line, (stack, layer_map) in enumerate(layer_maps.items()):
        top = header + line * row
        colors = set_colors((sets or {}).get(stack) or num_unique(layer_map))
        parts.append(f'<text x="10" y="{top + cell / 2 + 5}" text-anchor="start">{escape(stack)}</text>')
        for layer, label in enumerate(layer_map):
            left = margin + layer * cell
            parts.append(
                f'<rect x="{left + 1}" y="{top}" width="{cell - 2}" height="{cell}" rx="4" fill="{colors[label]}"/>'
                f'<text x="{left + cell / 2}" y="{top + cell / 2 + 5}" fill="{ink(colors[label])}">{label}</text>'
                f'<text x="{left + cell / 2}" y="{top - 6}" font-size="11" fill="#555">{layer + 1}</text>'
            )
    return "\n".join([*parts, "</svg>\n"])
