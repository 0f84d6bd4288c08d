"""The tables of comparisons: differences between rows with intervals, p-values and verdicts."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from fairseq_sharing.reporting.conclusions import Conclusions
from fairseq_sharing.reporting.equal_cost import with_interval
from fairseq_sharing.reporting.statistics import Pair, hedges_g, permutation_p, permutation_reaches

Cells = list[list[str]]

_COLUMNS = (
    *("row", "compared_with", "metric", "primary", "n", "n_compared", "mean", "mean_compared"),
    *("difference", "standard_error", "df", "low", "high", "own_low", "own_high", "p", "adjusted_p"),
    *("permutation_p", "hedges_g", "segment_error", "verdict"),
)


def comparison(conclusions: Conclusions) -> tuple[list[str], Cells]:
    """Make the table of the primary score: one comparison per line.

    Returns:
        The headers and the cells; no cells if all rows have one seed or there is no baseline.
    """
    plan, runs = conclusions.plan, conclusions.runs
    if all(len(seeds) == 1 for seeds in runs.values()) or not conclusions.pairs:
        return [], []
    exact = [_permutation(conclusions, pair) for pair in conclusions.pairs]
    headers = ["Row", *(["Compared with"] if plan.pairs else []), "n", "mean ± sd"]
    headers += ["Difference [95% interval]", "Adjusted p", "g"]
    headers += ["Permutation p, not adjusted"] if any(exact) else []
    headers += ["With sentences"] if conclusions.segments else []
    cells = []
    if not plan.pairs:
        assert plan.baseline
        start = [plan.baseline, str(len(runs[plan.baseline])), conclusions.spread(plan.baseline).format()]
        cells.append([*start, *["-"] * (len(headers) - len(start)), "baseline"])
    for pair, p in zip(conclusions.pairs, exact, strict=True):
        first, second = pair
        line = [first, *([second] if plan.pairs else []), str(len(runs[first])), conclusions.spread(first).format()]
        line += _difference(conclusions, pair)
        line += [p or "-"] if any(exact) else []
        line += [_with_sentences(conclusions, pair)] if conclusions.segments else []
        cells.append([*line, conclusions.verdict(pair)])
    return [*headers, "Verdict"], cells


def by_test(conclusions: Conclusions) -> tuple[list[str], Cells]:
    """Make the table of differences per test set, which are secondary: the interval of each comparison alone.

    Returns:
        The headers and the cells; no cells if nothing is compared, or if there is one test set only.
    """
    families = conclusions.by_test
    if len(families) < 2 or not any(families.values()):
        return [], []
    cells = []
    for pair in conclusions.pairs:
        found = [family.of(pair) if family else None for family in families.values()]
        if any(found):
            cells.append([f"{pair[0]} - {pair[1]}", *(with_interval(one) if one else "-" for one in found)])
    return ["Row", *families], cells


def comma_separated(conclusions: Conclusions) -> str:
    """Format the comparisons of the primary score as CSV, unrounded, one per line."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for pair in conclusions.pairs:
        samples = _samples(conclusions, pair)
        one = conclusions.comparison(pair)
        start = [*pair, conclusions.plan.metric, conclusions.plan.primary, *map(len, samples)]
        start += [conclusions.spread(name).mean for name in pair]
        numbers: list[object] = [""] * 9
        if one is not None:
            numbers = [one.difference, one.error, one.freedom, *one.interval, *one.own_interval, one.p]
            numbers.append(_adjusted(conclusions, pair))
        exact = permutation_p(*samples) if one and permutation_reaches(*map(len, samples)) else ""
        g = hedges_g(*samples)
        last = [exact, "" if g is None else g, conclusions.segments.get(pair, ""), conclusions.verdict(pair)]
        writer.writerow([*start, *numbers, *last])
    return stream.getvalue()


def _difference(conclusions: Conclusions, pair: Pair) -> list[str]:
    """Format the difference, the adjusted p-value and the effect size of a pair."""
    one = conclusions.comparison(pair)
    if one is None:
        return ["-"] * 3
    g = hedges_g(*_samples(conclusions, pair))
    adjusted = _adjusted(conclusions, pair)
    return [
        with_interval(one, simultaneous=True),
        "<0.001" if adjusted < 0.001 else f"{adjusted:.3f}",
        "-" if g is None else f"{g:.2f}",
    ]


def _adjusted(conclusions: Conclusions, pair: Pair) -> float:
    family = conclusions.family
    assert family
    return next(p for one, p in zip(family.comparisons, family.adjusted, strict=True) if one.pair == pair)


def _permutation(conclusions: Conclusions, pair: Pair) -> str:
    """Format the permutation p-value of a pair; empty where it cannot reach the level."""
    samples = _samples(conclusions, pair)
    if conclusions.comparison(pair) is None or not permutation_reaches(*map(len, samples)):
        return ""
    return f"{permutation_p(*samples):.3f}"


def _with_sentences(conclusions: Conclusions, pair: Pair) -> str:
    one = conclusions.comparison(pair)
    if one is None or pair not in conclusions.segments:
        return "-"
    low, high = one.widened(conclusions.segments[pair])
    return f"[{low:+.2f}, {high:+.2f}]"


def _samples(conclusions: Conclusions, pair: Pair) -> tuple[Sequence[float], Sequence[float]]:
    first, second = (list(conclusions.runs[name].values()) for name in pair)
    return first, second
