"""Compare rows of runs: pooled spread, differences with intervals, Dunnett, Welch, Holm, permutation, effect size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from statistics import fmean, stdev, variance

import numpy as np

LEVEL = 0.05
_PERMUTATIONS = 99_999  # all relabelings are enumerated up to this number
_OUTLYING = 3.0  # pooled standard deviations

Samples = Mapping[str, Sequence[float]]
Pair = tuple[str, str]


@dataclass(frozen=True)
class Pooled:
    """Standard deviation between runs, pooled over rows.

    Attributes:
        deviation: square root of the mean variance, weighted by degrees of freedom.
        freedom: degrees of freedom, the sum of n - 1.
    """

    deviation: float
    freedom: int

    @classmethod
    def of(cls, samples: Samples) -> Pooled | None:
        """Pool all rows with two or more runs; return None if there is none."""
        several = [values for values in samples.values() if len(values) > 1]
        if not several:
            return None
        freedom = sum(len(values) - 1 for values in several)
        squares = sum((len(values) - 1) * variance(values) for values in several)
        # Scores that are equal except for rounding errors have no spread.
        largest = max(abs(value) for values in several for value in values)
        deviation = math.sqrt(squares / freedom)
        return cls(deviation if deviation > 1e-12 * largest else 0.0, freedom)


@dataclass(frozen=True)
class Comparison:
    """The difference between the means of two rows.

    Attributes:
        pair: the names of the two rows.
        difference: mean of the first row minus mean of the second.
        error: standard error of the difference.
        freedom: degrees of freedom of the standard error.
        critical: half-width of the simultaneous interval, in standard errors.
    """

    pair: Pair
    difference: float
    error: float
    freedom: float
    critical: float

    @property
    def interval(self) -> tuple[float, float]:
        """Simultaneous 95% interval: all comparisons of the family are covered with a probability of 95%."""
        return self._around(self.critical)

    @property
    def own_interval(self) -> tuple[float, float]:
        """95% interval of this comparison alone."""
        return self._around(_student(1 - LEVEL / 2, self.freedom))

    def widened(self, segments: float) -> tuple[float, float]:
        """95% interval of this comparison alone that also covers the choice of test sentences.

        Args:
            segments: standard error over segments.
        """
        return self._around(_student(1 - LEVEL / 2, self.freedom) * math.hypot(1, segments / self.error))

    @property
    def p(self) -> float:
        """Two-sided p-value of Student's t test, not adjusted."""
        from scipy import stats

        return float(2 * stats.t.sf(abs(self.difference) / self.error, self.freedom))

    def _around(self, errors: float) -> tuple[float, float]:
        return self.difference - errors * self.error, self.difference + errors * self.error


@dataclass(frozen=True)
class Family:
    """Comparisons whose conclusions hold together with a probability of 95%.

    Attributes:
        comparisons: one per pair.
        pooled: the pooled spread; None for Welch's test and paired seeds.
        method: name of the correction for several comparisons.
    """

    comparisons: tuple[Comparison, ...]
    pooled: Pooled | None
    method: str
    _samples: Samples

    def of(self, pair: Pair) -> Comparison | None:
        """Return the comparison of a pair; None if it is not in the family."""
        return next((one for one in self.comparisons if one.pair == pair), None)

    @cached_property
    def adjusted(self) -> tuple[float, ...]:
        """Adjusted p-value of each comparison."""
        if self.method != "Dunnett":
            return tuple(holm([comparison.p for comparison in self.comparisons]))
        from scipy import stats

        rows = [self._samples[comparison.pair[0]] for comparison in self.comparisons]
        control = self._samples[self.comparisons[0].pair[1]]
        found = stats.dunnett(*rows, control=control, rng=0).pvalue
        # A randomized integral, whose error exceeds small p-values; no correction makes one smaller.
        return tuple(max(float(p), comparison.p) for p, comparison in zip(found, self.comparisons, strict=True))


def against_baseline(samples: Samples, baseline: str) -> Family | None:
    """Compare all rows with one baseline by Dunnett's test, with the pooled spread of all of them.

    Args:
        samples: one number per run, by row; rows with a single run are left out.
        baseline: name of the baseline.

    Returns:
        The comparisons; None if fewer than two rows have two runs, or if there is no spread.

    Source:
        Dunnett 1955, "A multiple comparison procedure for comparing several treatments with a control".
    """
    several = {name: values for name, values in samples.items() if len(values) > 1}
    pooled = Pooled.of(several)
    if pooled is None or not pooled.deviation or baseline not in several or len(several) < 2:
        return None
    rows = [name for name in several if name != baseline]
    critical = _dunnett_critical(tuple(len(several[name]) for name in rows), len(several[baseline]))
    found = tuple(_pooled(several, (name, baseline), pooled, critical) for name in rows)
    return Family(found, pooled, "Dunnett", several)


def of_pairs(samples: Samples, pairs: Sequence[Pair], separate: bool = False) -> Family | None:
    """Compare chosen pairs of rows by t tests, with Holm's correction and Bonferroni's intervals.

    Args:
        samples: one number per run, by row; pairs with a row of a single run are left out.
        pairs: names of the rows; the second is subtracted from the first.
        separate: estimate the variance of each row separately (Welch) instead of pooling all rows.

    Returns:
        The comparisons; None if no pair can be compared, or if there is no spread.
    """
    usable = [pair for pair in pairs if all(len(samples[name]) > 1 for name in pair)]
    pooled = Pooled.of(samples)
    if separate:
        usable = [pair for pair in usable if any(np.ptp(samples[name]) for name in pair)]
    if not usable or pooled is None or not pooled.deviation:
        return None
    level = 1 - LEVEL / 2 / len(usable)
    if separate:
        found = tuple(_welch(samples, pair, level) for pair in usable)
    else:
        found = tuple(_pooled(samples, pair, pooled, _student(level, pooled.freedom)) for pair in usable)
    return Family(found, None if separate else pooled, "Holm", samples)


def of_paired_seeds(runs: Mapping[str, Mapping[int, float]], pairs: Sequence[Pair]) -> Family | None:
    """Compare pairs of rows by the differences of runs with the same seed, with Holm's correction.

    Args:
        runs: one number per seed, by row.
        pairs: names of the rows; the second is subtracted from the first.

    Returns:
        The comparisons; None if no pair has two common seeds with different differences.
    """
    differences: dict[Pair, list[float]] = {}
    for first, second in pairs:
        common = [seed for seed in runs[first] if seed in runs[second]]
        values = [runs[first][seed] - runs[second][seed] for seed in common]
        if len(values) > 1 and np.ptp(values) > 1e-12 * max(map(abs, values)):
            differences[first, second] = values
    found = tuple(
        Comparison(
            pair,
            fmean(values),
            stdev(values) / math.sqrt(len(values)),
            len(values) - 1,
            _student(1 - LEVEL / 2 / len(differences), len(values) - 1),
        )
        for pair, values in differences.items()
    )
    return Family(found, None, "Holm", {}) if found else None


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for several tests, in the order given.

    Source:
        Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def permutation_reaches(first: int, second: int) -> bool:
    """Return whether a permutation test of two rows with these numbers of runs can give p < 0.05."""
    return 2 / math.comb(first + second, first) <= LEVEL


def permutation_p(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the two-sided p-value over all assignments of the runs to two rows.

    Above 99,999 assignments, a fixed random sample of that size is used.
    """
    from scipy import stats

    def difference(one: np.ndarray, two: np.ndarray, axis: int) -> np.ndarray:
        return np.mean(one, axis=axis) - np.mean(two, axis=axis)

    generator = np.random.default_rng(0)
    result = stats.permutation_test((first, second), difference, n_resamples=_PERMUTATIONS, rng=generator)
    return float(result.pvalue)


def hedges_g(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return the difference of the means in standard deviations of the two rows, corrected for small samples.

    Returns:
        Hedges' g; None if there is no spread.

    Source:
        Hedges 1981, "Distribution theory for Glass's estimator of effect size and related estimators".
    """
    pooled = Pooled.of({"first": first, "second": second})
    if pooled is None or not pooled.deviation or min(len(first), len(second)) < 2:
        return None
    return (1 - 3 / (4 * pooled.freedom - 1)) * (fmean(first) - fmean(second)) / pooled.deviation


def outliers(samples: Samples) -> list[str]:
    """Describe rows that spread more than the others, and runs far from their row."""
    pooled = Pooled.of(samples)
    if pooled is None or not pooled.deviation:
        return []
    found = []
    limit = _OUTLYING * pooled.deviation
    for name, values in samples.items():
        if len(values) < 2:
            continue
        if stdev(values) > limit:
            found.append(f"the standard deviation of {name}, {stdev(values):.2f}, exceeds three times the pooled one")
        far = [f"{value:.2f}" for value in values if abs(value - fmean(values)) > limit]
        if far:
            found.append(
                f"runs of {name} differ from its mean by more than three pooled standard deviations: {', '.join(far)}"
            )
    return found


def _pooled(samples: Samples, pair: Pair, pooled: Pooled, critical: float) -> Comparison:
    first, second = (samples[name] for name in pair)
    error = pooled.deviation * math.sqrt(1 / len(first) + 1 / len(second))
    return Comparison(pair, fmean(first) - fmean(second), error, pooled.freedom, critical)


def _welch(samples: Samples, pair: Pair, level: float) -> Comparison:
    """Compare two rows by Welch's test, with the degrees of freedom of Welch and Satterthwaite."""
    first, second = (samples[name] for name in pair)
    squares = [variance(values) / len(values) for values in (first, second)]
    parts = sum(square**2 / (len(values) - 1) for square, values in zip(squares, (first, second), strict=True))
    freedom = sum(squares) ** 2 / parts
    return Comparison(pair, fmean(first) - fmean(second), math.sqrt(sum(squares)), freedom, _student(level, freedom))


@lru_cache
def _student(probability: float, freedom: float) -> float:
    from scipy import stats

    return float(stats.t.ppf(probability, freedom))


@lru_cache
def _dunnett_critical(sizes: tuple[int, ...], control: int) -> float:
    """Return the half-width of Dunnett's intervals in standard errors, which depends on the numbers of runs only."""
    from scipy import stats

    rows = [np.arange(size, dtype=float) for size in (*sizes, control)]
    interval = stats.dunnett(*rows[:-1], control=rows[-1], rng=0).confidence_interval(1 - LEVEL)
    pooled = Pooled.of({str(index): row.tolist() for index, row in enumerate(rows)})
    assert pooled
    error = pooled.deviation * math.sqrt(1 / sizes[0] + 1 / control)
    return float(interval.high[0] - interval.low[0]) / 2 / error
