"""Search a monotone function of an integer for a target value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fairseq_sharing.errors import SharingError

# Doublings without growth after which the function is taken for constant.
_FLAT = 3


@dataclass(frozen=True)
class Grid:
    """The values to search: multiples of a step.

    Args:
        start: the multiple to begin with, as a number of steps, at least 1.
        most: the largest multiple, as a number of steps.
        step: the step.
    """

    start: int
    most: int
    step: int = 1


def surround(function: Callable[[int], float], target: float, grid: Grid, what: str) -> dict[int, float]:
    """Find the adjacent values between whose function values a target is.

    Args:
        function: a function of a value that never decreases. A SharingError for a value below the start means that the
            value is too small.
        target: the wanted function value.
        grid: the values.
        what: the name of the function value, for errors.

    Returns:
        The function values of the largest value at most at the target and of the next value, in this order.

    Raises:
        SharingError: the function is constant, or the target is below or above all its values; or an error of the
            function at or above the start.
    """
    known: dict[int, float] = {}

    def at(number: int) -> float:
        if number not in known:
            known[number] = function(number * grid.step)
        return known[number]

    below, above, refusal = 0, grid.start, ""
    if at(grid.start) <= target:
        below, above = _bracket_above(at, target, grid, what)
    while above - below > 1:
        middle = (below + above) // 2
        try:
            too_large = at(middle) > target
        except SharingError as error:
            if middle >= grid.start:
                raise
            below, refusal = middle, f"; {middle * grid.step} is refused: {error}"
            continue
        below, above, refusal = (below, middle, refusal) if too_large else (middle, above, "")
    if below == 0 or refusal:
        least = above * grid.step
        raise SharingError(
            f"{what}: above {target:g} at every value; the least, {least}, gives {at(above):.4g}{refusal}"
        )
    return {number * grid.step: at(number) for number in (below, above)}


def _bracket_above(at: Callable[[int], float], target: float, grid: Grid, what: str) -> tuple[int, int]:
    """Double the start until its function value is above the target."""
    below, flat = grid.start, 0
    while True:
        above = min(2 * below, grid.most)
        flat = flat + 1 if at(above) == at(below) else 0
        if flat == _FLAT:
            raise SharingError(f"{what}: {at(above):.4g} at every value; the target is {target:g}")
        if at(above) > target:
            return below, above
        if above == grid.most:
            raise SharingError(
                f"{what}: below {target:g} at every value; the largest, {above * grid.step}, gives {at(above):.4g}"
            )
        below = above
