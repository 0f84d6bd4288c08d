"""Colors of parameter sets, the same in all figures and on the terminal."""

from __future__ import annotations

import colorsys

# Distinguishable with any form of color blindness. Source: Okabe & Ito 2008, "Color Universal Design".
_SETS = ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999")


def set_colors(count: int) -> list[str]:
    """Return one color per parameter set, as ``#RRGGBB``; above eight sets, colors of varying hue and lightness."""
    if count <= len(_SETS):
        return list(_SETS[:count])
    steps = ((0.55 + 0.5 * i / count, 0.25 + 0.55 * i / (count - 1)) for i in range(count))
    return [_hex(*colorsys.hls_to_rgb(hue % 1, lightness, 0.65)) for hue, lightness in steps]


def ink(background: str) -> str:
    """Choose black or white text by the relative luminance of its background (WCAG 2.1)."""
    red, green, blue = (int(background[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return "black" if 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 > 0.18 else "white"


def _hex(red: float, green: float, blue: float) -> str:
    return f"#{round(255 * red):02X}{round(255 * green):02X}{round(255 * blue):02X}"
