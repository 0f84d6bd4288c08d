"""Draw conclusions from the runs of a study: primary scores, comparisons, verdicts and warnings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean

from fairseq_sharing.errors import SharingError
from fairseq_sharing.reporting.comparison_plan import MEAN, ComparisonPlan
from fairseq_sharing.reporting.power import required_seeds
from fairseq_sharing.reporting.results import Row, Spread, scored_sets
from fairseq_sharing.reporting.statistics import (
    Comparison,
    Family,
    Pair,
    Pooled,
    against_baseline,
    of_paired_seeds,
    of_pairs,
    outliers,
)

ONE_SEED = "1 seed: no statement about the method"
DETECTABLE = 0.5  # points that an inconclusive verdict plans for

# One number per seed, by row.
Runs = dict[str, dict[int, float]]


@dataclass(frozen=True)
class Conclusions:
    """The comparison of a study's rows.

    Attributes:
        plan: what is compared.
        tests: the test sets of the primary score.
        runs: the primary score of each run.
        family: the comparisons of the primary score; None if there is nothing to compare.
        by_test: the same comparisons per test set, which are secondary.
        segments: standard error over segments of each compared pair, where hypotheses and references are at hand.
    """

    plan: ComparisonPlan
    tests: tuple[str, ...]
    runs: Runs
    family: Family | None
    by_test: Mapping[str, Family | None]
    segments: Mapping[Pair, float] = field(default_factory=dict)

    @property
    def pooled(self) -> Pooled | None:
        """Standard deviation between runs, pooled over all rows."""
        return Pooled.of(_samples(self.runs))

    @property
    def pairs(self) -> list[Pair]:
        """The pairs to compare, including those that cannot be compared."""
        return _pairs(self.plan, self.runs)

    @property
    def score_name(self) -> str:
        """Name of the primary score."""
        if len(self.tests) == 1:
            return f"{self.plan.of.label} {self.tests[0]}"
        return f"{self.plan.of.label}, mean of {len(self.tests)} test sets"

    def spread(self, run: str) -> Spread:
        """Mean and standard deviation of a row's primary score."""
        return Spread.of(list(self.runs[run].values()))

    def comparison(self, pair: Pair) -> Comparison | None:
        """Comparison of two rows; None if they cannot be compared."""
        return self.family.of(pair) if self.family else None

    def verdict(self, pair: Pair) -> str:
        """Describe what the simultaneous interval of a pair says."""
        comparison = self.comparison(pair)
        if comparison is not None:
            return _verdict(comparison, self.plan, [len(self.runs[name]) for name in pair])
        if any(len(self.runs[name]) < 2 for name in pair):
            return ONE_SEED
        if self.pooled is not None and not self.pooled.deviation:
            return "no spread: check that seeds differ"
        return "too few seeds: no statement about the method"

    def warnings(self) -> list[str]:
        """Describe unusual runs."""
        return [f"Warning: {text}." for text in outliers(_samples(self.runs))]


def conclude(rows: Sequence[Row], plan: ComparisonPlan) -> Conclusions:
    """Compare the rows of a study as planned.

    Args:
        rows: the experiments.
        plan: what is compared.

    Raises:
        SharingError: a run has no score on a test set of the primary score.
    """
    tests = tuple(scored_sets(rows)) if plan.primary == MEAN else (plan.primary,)
    runs = {row.run: {result["seed"]: _score(result, tests, plan.metric) for result in row.results} for row in rows}
    by_test = {}
    for test in scored_sets(rows):
        scored = {row.run: _scores(row, test, plan.metric) for row in rows}
        by_test[test] = _compare({run: scores for run, scores in scored.items() if scores}, plan)
    return Conclusions(plan, tests, runs, _compare(runs, plan), by_test)


def equal_hypotheses(rows: Sequence[Row]) -> list[str]:
    """Describe runs of a row whose hypotheses are equal although their seeds differ."""
    found = []
    for row in rows:
        prints = {
            result["seed"]: [score.get("hypothesis_sha256") for score in result["scores"].values()]
            for result in row.results
        }
        for one, other in combinations(prints, 2):
            if None not in prints[one] and prints[one] == prints[other]:
                found.append(
                    f"Warning: seeds {one} and {other} of {row.run} have equal hypotheses: check that seeds differ."
                )
    return found


def _score(result: dict, tests: Sequence[str], metric: str) -> float:
    missing = [test for test in tests if metric not in result["scores"].get(test, {})]
    if missing:
        raise SharingError(
            f"{result['run']}-seed{result['seed']}: no {metric} on {missing[0]}, which is part of the primary score; "
            "evaluate it again, or name a test set and a metric that every run has with --primary and --metric"
        )
    return fmean(result["scores"][test][metric] for test in tests)


def _scores(row: Row, test: str, metric: str) -> dict[int, float]:
    found = {result["seed"]: result["scores"].get(test, {}).get(metric) for result in row.results}
    return {seed: score for seed, score in found.items() if score is not None}


def _samples(runs: Runs) -> dict[str, list[float]]:
    return {run: list(scores.values()) for run, scores in runs.items()}


def _pairs(plan: ComparisonPlan, runs: Runs) -> list[Pair]:
    if plan.pairs:
        return list(plan.pairs)
    return [(run, plan.baseline) for run in runs if run != plan.baseline] if plan.baseline else []


def _compare(runs: Runs, plan: ComparisonPlan) -> Family | None:
    pairs = [pair for pair in _pairs(plan, runs) if set(pair) <= set(runs)]
    samples = _samples(runs)
    if plan.paired_seeds:
        return of_paired_seeds(runs, pairs)
    pooled = Pooled.of(samples)
    if not pairs or pooled is None or pooled.freedom < 2:
        return None
    if plan.pairs or plan.variance == "separate":
        return of_pairs(samples, pairs, separate=plan.variance == "separate")
    assert plan.baseline
    return against_baseline(samples, plan.baseline)


def _verdict(comparison: Comparison, plan: ComparisonPlan, sizes: Sequence[int]) -> str:
    low, high = comparison.interval
    if low > 0 or high < 0:
        return "better" if (high < 0) == plan.of.lower_is_better else "worse"
    if max(-low, high) <= plan.margin:
        return f"equivalent within {plan.margin:g}"
    # The deviation that gives this standard error with these numbers of runs.
    deviation = comparison.error / math.sqrt(sum(1 / size for size in sizes))
    for wanted in (DETECTABLE, plan.margin):
        seeds = required_seeds(deviation, wanted)
        if seeds is None or seeds > min(sizes):
            about = "too many" if seeds is None else f"about {seeds:,}"
            return f"inconclusive; {about} seeds needed to detect {wanted:g} {plan.of.label}"
    return "inconclusive"
