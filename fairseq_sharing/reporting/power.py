"""Power of a comparison of two rows: how many seeds detect a difference, and what a number of seeds detects."""

from __future__ import annotations

import math
from bisect import bisect_left

from fairseq_sharing.reporting.statistics import LEVEL

POWER = 0.8  # the probability of detection that is customary
_MOST = 10_000_000  # seeds


def power(deviation: float, difference: float, seeds: int) -> float:
    """Return the probability that a two-sided t test at 5% detects a difference.

    Args:
        deviation: standard deviation between runs of one row.
        difference: the true difference of the means.
        seeds: runs per row, two or more.
    """
    from scipy import stats

    freedom = 2 * (seeds - 1)
    critical = stats.t.ppf(1 - LEVEL / 2, freedom)
    shift = abs(difference) / deviation * math.sqrt(seeds / 2)
    return float(stats.nct.sf(critical, freedom, shift) + stats.nct.cdf(-critical, freedom, shift))


def required_seeds(deviation: float, difference: float) -> int | None:
    """Return the smallest number of runs per row that detects a difference with 80% power; None above ten million."""
    high = 2
    while power(deviation, difference, high) < POWER:
        if high > _MOST:
            return None
        high *= 2
    low = max(2, high // 2)
    return low + bisect_left(range(low, high), POWER, key=lambda seeds: power(deviation, difference, seeds))


def least_difference(deviation: float, seeds: int) -> float:
    """Return the smallest difference that a number of runs per row detects with 80% power."""
    from scipy import optimize

    def missing(difference: float) -> float:
        return power(1.0, difference, seeds) - POWER

    high = 1.0
    while missing(high) < 0:
        high *= 2
    return deviation * float(optimize.brentq(missing, 0.0, high))


def half_width(deviation: float, seeds: int) -> float:
    """Return the half-width of the 95% interval of the difference of two rows."""
    from scipy import stats

    return deviation * math.sqrt(2 / seeds) * float(stats.t.ppf(1 - LEVEL / 2, 2 * (seeds - 1)))
