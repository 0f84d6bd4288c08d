"""Compare rows that share parameters with rows that do not, at equal parameters, computation or training time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from fairseq_sharing.reporting.conclusions import ONE_SEED, Conclusions
from fairseq_sharing.reporting.results import Row
from fairseq_sharing.reporting.statistics import Comparison, of_pairs

TOLERANCE = 0.05  # costs within 5% count as equal
_MACHINE = ("kind", "name", "count", "threads")


def equal_cost(rows: Sequence[Row], conclusions: Conclusions) -> tuple[list[str], list[list[str]]]:
    """Make the table of comparisons at equal cost.

    Args:
        rows: the experiments.
        conclusions: the comparison of the study, whose primary score is used.

    Returns:
        The headers and the cells: one line per row that has a row without sharing of equal cost, one column per kind
        of cost; no cells if no row has one.
    """
    without = [row for row in rows if row.strategy == "none" and not row.is_moeut]
    without.sort(key=lambda row: row.run != conclusions.plan.baseline)
    costs: dict[str, Callable[[Row, Row], bool]] = {
        "At equal parameters": lambda row, other: _close(_parameters(row), _parameters(other)),
        "At equal MACs of training": _equal_macs,
        "At equal training time": _equal_time,
    }
    cells = []
    for row in rows:
        found = [[other for other in without if equal(row, other)] for equal in costs.values()]
        if row not in without and any(
            len(row.results) > 1 < len(other.results) for others in found for other in others
        ):
            cells.append([row.run, *(_cell(row, others, conclusions) for others in found)])
    return ["Row", *costs], cells


def _cell(row: Row, others: Sequence[Row], conclusions: Conclusions) -> str:
    found = [f"{_difference(row, other, conclusions)} from {other.run}" for other in others]
    return "; ".join(found) or "-"


def _difference(row: Row, other: Row, conclusions: Conclusions) -> str:
    samples = {run: list(scores.values()) for run, scores in conclusions.runs.items()}
    if min(len(samples[row.run]), len(samples[other.run])) < 2:
        return ONE_SEED.partition(":")[0]
    family = of_pairs(samples, [(row.run, other.run)], separate=conclusions.plan.variance == "separate")
    return with_interval(family.comparisons[0]) if family else "no spread"


def with_interval(comparison: Comparison, simultaneous: bool = False) -> str:
    """Format a difference with its 95% interval."""
    low, high = comparison.interval if simultaneous else comparison.own_interval
    return f"{comparison.difference:+.2f} [{low:+.2f}, {high:+.2f}]"


def _close(one: float, two: float) -> bool:
    return abs(one - two) <= TOLERANCE * two


def _parameters(row: Row) -> float:
    return fmean(result.get("mean_parameters", result["parameters"]["unique"]) for result in row.results)


def _equal_macs(row: Row, other: Row) -> bool:
    """Compare the MACs of training up to a factor: those per token times updates.

    Without recorded MACs, those of dense stacks are proportional to the effective parameters.
    """
    recorded = all("macs" in result for one in (row, other) for result in one.results)
    if not recorded and (row.is_moeut or other.is_moeut):
        return False

    def macs(result: dict[str, Any]) -> float:
        return (result["macs"] if recorded else result["parameters"]["effective"]) * result["updates"]

    return _close(*(fmean(map(macs, one.results)) for one in (row, other)))


def _equal_time(row: Row, other: Row) -> bool:
    """Compare training times if all runs record the same device, threads and software; a CPU must record threads."""
    results = [*row.results, *other.results]
    machines = [_machine(result) for result in results]
    if machines[0] is None or any(machine != machines[0] for machine in machines):
        return False
    if not all(result.get("train_seconds") for result in results):
        return False
    return _close(*(fmean(result["train_seconds"] for result in one.results) for one in (row, other)))


def _machine(result: dict[str, Any]) -> Any:
    device, versions = result.get("device"), result.get("versions")
    if not device or not versions or (device.get("kind") == "cpu" and "threads" not in device):
        return None
    return [device.get(name) for name in _MACHINE], versions
