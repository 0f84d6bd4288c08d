"""Check the comparison of a report on equal methods: how often it tells them apart, simulated and on real runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np

from fairseq_sharing.reporting.statistics import LEVEL, Family, against_baseline, of_pairs

DRAWS = 2000
TOLERANCE = 0.015  # three binomial standard deviations of 2,000 draws
LEAST_RUNS = 8  # of a row that is split
_SPLITS = 1000
_BASELINE = "baseline"


@dataclass(frozen=True)
class Rates:
    """How often simulated equal methods are told apart, at a nominal 5%.

    Attributes:
        report: any comparison of a study, by Dunnett's test.
        welch: any comparison of a study, by Welch's tests with Holm's correction.
        coverage: how often the interval of a single comparison covers the true difference, 0.
        single_seed: a paired test over sentences of one run per method.
    """

    report: float
    welch: float
    coverage: float
    single_seed: float


def is_calibrated(rate: float) -> bool:
    """Return whether a rate of false conclusions agrees with the nominal 5%."""
    return abs(rate - LEVEL) <= TOLERANCE


def simulate(sizes: Sequence[int], deviation: float, segment_noise: float = 0.25, draws: int = DRAWS) -> Rates:
    """Draw studies of equal methods and compare them as a report does.

    Args:
        sizes: runs per row, two or more; the first row is the baseline.
        segment_noise: standard deviation of a run's score that comes from the sentences; the paired test knows it.
    """
    generator = np.random.default_rng(0)
    names = [_BASELINE, *(f"row {index}" for index in range(1, len(sizes)))]
    pairs = [(name, _BASELINE) for name in names[1:]]
    report = welch = covered = single = 0
    for _ in range(draws):
        samples = {
            name: (generator.normal(0, deviation, size) + generator.normal(0, segment_noise, size)).tolist()
            for name, size in zip(names, sizes, strict=True)
        }
        family, separate = against_baseline(samples, _BASELINE), of_pairs(samples, pairs, separate=True)
        assert family
        assert separate
        report += _tells_apart(family)
        welch += min(separate.adjusted) < LEVEL
        covered += sum(low <= 0 <= high for low, high in (one.own_interval for one in family.comparisons))
        difference = samples[names[1]][0] - samples[_BASELINE][0]
        single += math.erfc(abs(difference) / segment_noise / 2) < LEVEL
    return Rates(report / draws, welch / draws, covered / draws / len(pairs), single / draws)


@lru_cache
def split_rates(runs: tuple[float, ...]) -> tuple[float, float]:
    """Split the runs of one row into two groups, in all ways or 1,000 random ones, and compare the groups.

    Args:
        runs: the primary scores, eight or more.

    Returns:
        The proportion of splits that are told apart by the report's comparison, and by Welch's test.
    """
    half = len(runs) // 2
    if math.comb(len(runs), half) <= _SPLITS:
        chosen = [list(group) for group in combinations(range(len(runs)), half)]
    else:
        generator = np.random.default_rng(0)
        chosen = [generator.permutation(len(runs))[:half].tolist() for _ in range(_SPLITS)]
    pooled = welch = 0
    for group in chosen:
        rest = [index for index in range(len(runs)) if index not in group]
        samples = {"row": [runs[index] for index in group], _BASELINE: [runs[index] for index in rest]}
        family, separate = against_baseline(samples, _BASELINE), of_pairs(samples, [("row", _BASELINE)], separate=True)
        pooled += family is not None and _tells_apart(family)
        welch += separate is not None and _tells_apart(separate)
    return pooled / len(chosen), welch / len(chosen)


def _tells_apart(family: Family) -> bool:
    return any(low > 0 or high < 0 for low, high in (one.interval for one in family.comparisons))
