"""Number the points of a panel, without overlap and without moving a point."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABEL_SIZE = 8  # typographic points
_DIRECTIONS = 24
_DISTANCES = (6, 8, 11, 14, 18, 23, 28, 34, 40, 48, 56, 66)  # typographic points from a point to the label's edge
_GAP = 1.0  # typographic points between a label and anything else
_SAME = 2.5  # points that are nearer coincide, in typographic points
_CAP = 2.5  # half the width of an error bar's cap, in typographic points
_HIDDEN = 1e3  # cost of a line that passes through a label or another point, in square points of overlap

_Line = tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Point:
    """A numbered point.

    Attributes:
        x: its position, in data coordinates.
        y: its position, in data coordinates.
        x_bar: half the length of its horizontal error bar.
        y_bar: half the length of its vertical error bar.
        size: size of its marker, in typographic points.
        number: its label.
    """

    x: float
    y: float
    x_bar: float
    y_bar: float
    size: float
    number: int


@dataclass(frozen=True)
class _Box:
    """A rectangle, in typographic points."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: _Box) -> float:
        """Return the area that both boxes cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, width) * max(0.0, height)

    def contains(self, place: tuple[float, float]) -> bool:
        """Return whether a place is inside of the box."""
        return self.left <= place[0] <= self.right and self.bottom <= place[1] <= self.top

    def outside(self, other: _Box) -> float:
        """Return the area of this box that is outside of the other."""
        return (self.right - self.left) * (self.top - self.bottom) - self.overlap(other)


def add_labels(axes: Axes, points: Sequence[Point]) -> None:
    """Write the number of each point near it, connected to it by a thin line; points that coincide share a label.

    Call this after the layout and the limits of the axes are final.

    Args:
        axes: the panel.
        points: its points.
    """
    figure = axes.get_figure()
    assert figure is not None
    scale = 72 / figure.dpi
    frame = _Box(*(scale * value for value in axes.get_window_extent().extents))
    places = [_place(axes, point.x, point.y, scale) for point in points]
    groups = _groups(points, places)
    markers = [_around(place, (point.size + 2, point.size + 2)) for point, place in zip(points, places, strict=True)]
    bars = [box for point in points for box in _bars(axes, point, scale)]
    labels: list[_Box] = []
    lines: list[_Line] = []
    for place in sorted(groups, key=lambda place: _crowding(place, groups)):
        text = _ranges([point.number for point in groups[place]])
        size = (0.64 * LABEL_SIZE * len(text) + 2 * _GAP, LABEL_SIZE + 2 * _GAP)
        strangers = [box for box in markers if not box.contains(place)]

        def cost(end: tuple[float, float]) -> tuple[float, float]:
            line, box = (place, end), _around(end, size)  # noqa: B023
            overlap = box.outside(frame) + sum(box.overlap(other) for other in (*markers, *bars, *labels))
            hidden = sum(_passes(other, box) for other in lines)
            hidden += sum(_passes(line, other) for other in (*labels, *strangers))  # noqa: B023
            return round(overlap + _HIDDEN * hidden, 6), round(math.dist(*line), 6)

        best = min(_candidates(place, size), key=cost)
        _annotate(axes, text, groups[place][0], (best[0] - place[0], best[1] - place[1]))
        labels.append(_around(best, size))
        lines.append((place, best))


def _groups(points: Sequence[Point], places: Sequence[tuple[float, float]]) -> dict[tuple[float, float], list[Point]]:
    """Group points that coincide, by the place of the first of them."""
    groups: dict[tuple[float, float], list[Point]] = {}
    for point, place in zip(points, places, strict=True):
        near = next((other for other in groups if math.dist(place, other) < _SAME), place)
        groups.setdefault(near, []).append(point)
    return groups


def _ranges(numbers: Sequence[int]) -> str:
    """Format increasing numbers, three or more consecutive ones as a range: ``1, 2, 6-11``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _crowding(place: tuple[float, float], others: Collection[tuple[float, float]]) -> float:
    """Return how crowded a place is: the number of other places, near ones counted most."""
    return sum(1 / math.dist(place, other) for other in others if other != place)


def _place(axes: Axes, x: float, y: float, scale: float) -> tuple[float, float]:
    """Return the position of a data point in the figure, in typographic points."""
    left, bottom = axes.transData.transform((x, y))
    return scale * float(left), scale * float(bottom)


def _bars(axes: Axes, point: Point, scale: float) -> Iterator[_Box]:
    """Yield the boxes of the error bars of a point."""
    for width, height in ((point.x_bar, 0.0), (0.0, point.y_bar)):
        if width or height:
            left, bottom = _place(axes, point.x - width, point.y - height, scale)
            right, top = _place(axes, point.x + width, point.y + height, scale)
            yield _Box(left - _CAP, bottom - _CAP, right + _CAP, top + _CAP)


def _candidates(place: tuple[float, float], size: tuple[float, float]) -> Iterator[tuple[float, float]]:
    """Yield possible centers of a label: in all directions, nearest first, with the same gap to the point."""
    for distance in _DISTANCES:
        for step in range(_DIRECTIONS):
            angle = math.pi / 4 + 2 * math.pi * step / _DIRECTIONS
            x, y = (distance + size[0] / 2) * math.cos(angle), (distance + size[1] / 2) * math.sin(angle)
            yield place[0] + x, place[1] + y


def _around(center: tuple[float, float], size: tuple[float, float]) -> _Box:
    (x, y), (width, height) = center, size
    return _Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _passes(line: _Line, box: _Box) -> bool:
    """Return whether a line passes through a box, tested at points along it."""
    (x0, y0), (x1, y1) = line
    steps = max(2, math.ceil(math.dist(*line) / 2))
    along = ((x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps) for i in range(steps + 1))
    return any(box.left < x < box.right and box.bottom < y < box.top for x, y in along)


def _annotate(axes: Axes, text: str, point: Point, offset: tuple[float, float]) -> None:
    axes.annotate(
        text,
        (point.x, point.y),
        xytext=offset,
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=LABEL_SIZE,
        arrowprops={"arrowstyle": "-", "color": "#888888", "linewidth": 0.6, "shrinkA": 0, "shrinkB": point.size / 2},
        bbox={"boxstyle": "square,pad=0.05", "facecolor": "none", "edgecolor": "none"},
        zorder=1,
    ).set_in_layout(False)
