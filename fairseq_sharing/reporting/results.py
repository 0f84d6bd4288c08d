"""Read the results of a study and bring the seeds of each experiment together in one row."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq_sharing.errors import SharingError
from fairseq_sharing.finite import find_nonfinite

# The names of the strategies and schedules in a table, in the order of its rows.
LABELS = {
    "none": "Vanilla",
    "universal": "Universal",
    "sequence": "Sequence",
    "cycle": "Cycle",
    "cycle_rev": "Cycle (rev)",
    "sandwich": "Sandwich",
    "custom": "Custom",
    "unshare": "Share, then unshare",
    "dynamic": "Dynamic tying",
    "replay": "Replayed",
}
STACKS = ("encoder", "decoder")
_NEEDED = (
    "run",
    "dataset",
    "sharing",
    "layers",
    "unique_layers",
    "layer_map",
    "parameters",
    "updates",
    "seed",
    "tokens_per_second",
    "scores",
)
# What the seeds of one experiment have in common.
_COMMON = ("dataset", "sharing", "layers", "layer_map", "parameters")
# What may differ where each seed finds its own map.
_OF_A_MAP = ("layer_map", "parameters")


@dataclass(frozen=True)
class Spread:
    """Mean of a value over seeds, and its sample standard deviation where there are at least two."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarize at least one value."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def format(self, digits: int = 2) -> str:
        """Write ``mean ± deviation``, or the mean alone."""
        text = f"{self.mean:,.{digits}f}"
        return text if self.deviation is None else f"{text} ± {self.deviation:,.{digits}f}"


@dataclass(frozen=True)
class Row:
    """One experiment: the runs that share a name, one a seed.

    Attributes:
        results: the contents of their result files, by seed.
    """

    results: tuple[dict[str, Any], ...]

    def __getitem__(self, name: str) -> Any:
        """Return a field that all seeds have in common, from the first."""
        return self.results[0][name]

    @property
    def run(self) -> str:
        """The experiment's name."""
        return self["run"]

    @property
    def strategy(self) -> str:
        """The schedule or else the encoder's strategy, by which rows are ordered and colored."""
        if self.schedule:
            return self.schedule
        return self["sharing"].get("encoder") or next(iter(self["sharing"].values()))

    @property
    def schedule(self) -> str | None:
        """What changed the map while training; None for a fixed one."""
        return self.results[0].get("schedule")

    @property
    def label(self) -> str:
        """The schedule, or the strategy in words; both strategies, encoder's first, where the stacks differ."""
        if self.schedule:
            return LABELS.get(self.schedule, self.schedule)
        names = [LABELS.get(name, name) for name in self["sharing"].values()]
        label = " / ".join(dict.fromkeys(names))
        return f"MoEUT ({label})" if "moeut" in str(self.results[0].get("arch")) else label

    def sizes(self, field: str) -> str:
        """Write a number by stack (``layers`` or ``unique_layers``): one where they agree, else ``6+3``."""
        numbers = [self._range([result[field][stack] for result in self.results]) for stack in self[field]]
        return numbers[0] if len(set(numbers)) == 1 else "+".join(numbers)

    @property
    def title(self) -> str:
        """The label with M and N."""
        return f"{self.label}, M={self.sizes('unique_layers')}, N={self.sizes('layers')}"

    @property
    def speed(self) -> Spread | None:
        """Target tokens a second in training; None when no log tells."""
        values = [result["tokens_per_second"] for result in self.results if result["tokens_per_second"]]
        return Spread.of(values) if values else None

    @property
    def updates(self) -> str:
        """Updates trained, as a range where the seeds differ."""
        return self._range([result["updates"] for result in self.results])

    def parameters(self, kind: str) -> str:
        """Write the ``unique`` or ``effective`` parameters, as a range where the seeds differ."""
        return self._range([result["parameters"][kind] for result in self.results])

    @property
    def mean_parameters(self) -> str:
        """Unique parameters that were trained, on average over the updates; of a fixed map all."""
        return self._range([result.get("mean_parameters", result["parameters"]["unique"]) for result in self.results])

    @property
    def peak_memory(self) -> str:
        """Peak memory of training in GiB, of the GPU or of a CPU process; a range where the seeds differ."""
        peaks = [result.get("peak_memory_bytes") for result in self.results]
        known = [round(peak / 2**30, 2) for peak in peaks if peak]
        return self._range(known, ".2f") if known else "-"

    @staticmethod
    def _range(values: Sequence[float], form: str = ",") -> str:
        return " to ".join(f"{value:{form}}" for value in dict.fromkeys((min(values), max(values))))

    def score(self, test: str, metric: str) -> Spread | None:
        """Summarize BLEU or chrF on a test set; None where it wasn't scored."""
        values = [result["scores"][test][metric] for result in self.results if test in result["scores"]]
        return Spread.of(values) if values else None

    def p_value(self, test: str) -> str:
        """Write the p-value on a test set; empty without baseline, and for several seeds, which have no common one."""
        if len(self.results) > 1 or test not in self["scores"]:
            return ""
        value = self["scores"][test]["p_value"]
        return "" if value is None else f"p={value:.3f}"


def read_rows(folder: Path) -> list[Row]:
    """Read every result of a folder.

    Args:
        folder: a study, one JSON file a run.

    Returns:
        One row an experiment: vanilla first, then by strategy, M and N.

    Raises:
        SharingError: no folder or no result in it, a file that is no result, two results of one seed, or runs
            of one name that are not the same experiment.
    """
    if not folder.is_dir():
        raise SharingError(f"{folder}: no such folder of results")
    by_run: dict[str, list[dict[str, Any]]] = {}
    origin: dict[tuple[str, int], Path] = {}
    files = sorted(folder.glob("*.json"))
    for file in files:
        result = read_result(file)
        key = (result["run"], result["seed"])
        if key in origin:
            raise SharingError(f"{file} and {origin[key]} are both run {key[0]}, seed {key[1]}; keep one")
        origin[key] = file
        group = by_run.setdefault(result["run"], [])
        for name in _COMMON:
            if name in _OF_A_MAP and (result.get("schedule") or "custom" in result["sharing"].values()):
                continue
            if group and group[0][name] != result[name]:
                other = origin[group[0]["run"], group[0]["seed"]]
                raise SharingError(f"{file} and {other} share a name, {result['run']}, but differ in {name}")
        group.append(result)
    if not files:
        raise SharingError(f"{folder}: holds no result (*.json); make them with evaluate --out {folder}")
    datasets = sorted({group[0]["dataset"] for group in by_run.values()})
    if len(datasets) > 1:
        raise SharingError(f"{folder}: results of several datasets ({', '.join(datasets)}); one a folder")
    rows = [Row(tuple(sorted(group, key=lambda result: result["seed"]))) for group in by_run.values()]
    return sorted(rows, key=_order)


def read_result(file: Path) -> dict[str, Any]:
    """Read one result file.

    Raises:
        SharingError: it is no result; the message names the field that is missing or not allowed, such as NaN.
    """
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SharingError(f"{file}: not JSON ({error})") from error
    missing = [name for name in _NEEDED if not isinstance(result, dict) or name not in result]
    if missing:
        raise SharingError(f"{file}: not a result of evaluate: it lacks {', '.join(missing)}")
    # Names of written files contain both.
    for name in ("run", "seed"):
        if "/" in str(result[name]):
            raise SharingError(f"{file}: {name} is {result[name]!r}; allowed: a name without /")
    nonfinite = find_nonfinite(result)
    if nonfinite is not None:
        raise SharingError(f"{file}: {nonfinite}; allowed: finite numbers, as evaluate writes them")
    if not result["scores"]:
        raise SharingError(f"{file}: scores no test set")
    return result


def scored_sets(rows: Iterable[Row]) -> list[str]:
    """Name the test sets of all rows, in the order in which they were scored."""
    names = (name for row in rows for result in row.results for name in result["scores"])
    return list(dict.fromkeys(names))


def signatures(rows: Iterable[Row]) -> dict[str, list[str]]:
    """List the signatures by metric; more than one means scores that cannot be compared."""
    found: dict[str, dict[str, None]] = {"bleu": {}, "chrf": {}}
    for row in rows:
        for result in row.results:
            for score in result["scores"].values():
                for metric, signature in score["signature"].items():
                    found[metric][signature] = None
    return {metric: list(names) for metric, names in found.items()}


def baselines(rows: Iterable[Row]) -> dict[str, list[str]]:
    """Name the experiments that p-values compare with, without their seeds, and the runs compared with each."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        for result in row.results:
            for score in result["scores"].values():
                if score["baseline"]:
                    found.setdefault(re.sub(r"-seed\d+$", "", score["baseline"]), {})[row.run] = None
    return {name: list(runs) for name, runs in found.items()}


def _order(row: Row) -> tuple[Any, ...]:
    strategies = list(LABELS)
    rank = strategies.index(row.strategy) if row.strategy in strategies else len(strategies)
    return rank, sum(row["unique_layers"].values()), sum(row["layers"].values()), row.run
