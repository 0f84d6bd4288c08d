"""Draw docs/layer_maps.svg: the layer map of each strategy for six layers and at most three parameter sets.

Run: python scripts/draw_layer_maps.py
"""

from argparse import ArgumentParser
from pathlib import Path

from fairseq_sharing.description.drawing import draw_maps
from fairseq_sharing.layer_map import make_layer_map

FILE = Path(__file__).resolve().parents[1] / "docs" / "layer_maps.svg"
NUM_LAYERS = 6
# M of the strategies that require it; the others imply it.
UNIQUE_LAYERS = {"sequence": 3, "cycle": 3, "cycle_rev": 3}
STRATEGIES = ("none", "universal", "sequence", "cycle", "cycle_rev", "sandwich")


def draw() -> str:
    """Draw the layer maps as SVG, one row per strategy."""
    maps = {name: make_layer_map(name, NUM_LAYERS, UNIQUE_LAYERS.get(name)) for name in STRATEGIES}
    return draw_maps(maps, cell=36)


if __name__ == "__main__":
    ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    FILE.write_text(draw(), encoding="utf-8")
