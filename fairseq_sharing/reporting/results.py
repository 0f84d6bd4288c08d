"""Read the results of a study and group the seeds of each experiment into one row."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq_sharing.documents import read_json
from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import atomic_write, inside
from fairseq_sharing.reporting.result_schema import RESULT

# Names of the strategies and schedules in a table, in the order of its rows.
LABELS = {
    "none": "Vanilla",
    "universal": "Universal",
    "sequence": "Sequence",
    "cycle": "Cycle",
    "cycle_rev": "Cycle (rev)",
    "sandwich": "Sandwich",
    "components": "Components",
    "custom": "Custom",
    "unshare": "Share, then unshare",
    "dynamic": "Dynamic tying",
    "replay": "Replayed",
}
STACKS = ("encoder", "decoder")
_NEEDED = (
    *("run", "dataset", "sharing", "layers", "unique_layers", "layer_map", "parameters", "updates", "seed"),
    *("tokens_per_second", "scores"),
)
# Fields that must be equal for all seeds of an experiment.
_COMMON = ("dataset", "sharing", "layers", "layer_map", "parameters")
# Fields that may differ if each seed finds its own map.
_OF_A_MAP = ("layer_map", "parameters")


@dataclass(frozen=True)
class Spread:
    """Mean of a value over seeds, and its sample standard deviation for two or more seeds."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarize one or more values."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def format(self, digits: int = 2) -> str:
        """Format as ``mean ± deviation``, or as the mean alone for one seed."""
        text = f"{self.mean:,.{digits}f}"
        return text if self.deviation is None else f"{text} ± {self.deviation:,.{digits}f}"


@dataclass(frozen=True)
class Row:
    """One experiment: the runs with the same name, one per seed.

    Attributes:
        results: the contents of their result files, sorted by seed.
    """

    results: tuple[dict[str, Any], ...]

    def __getitem__(self, name: str) -> Any:
        """Return a field of the first seed; use it for fields that are equal for all seeds."""
        return self.results[0][name]

    @property
    def run(self) -> str:
        """Name of the experiment."""
        return self["run"]

    @property
    def strategy(self) -> str:
        """Schedule, or the encoder's strategy if there is none; determines the order and color of rows."""
        if self.schedule:
            return self.schedule
        return self["sharing"].get("encoder") or next(iter(self["sharing"].values()))

    @property
    def schedule(self) -> str | None:
        """Schedule that changed the map during training; None for a fixed map."""
        return self.results[0].get("schedule")

    @property
    def label(self) -> str:
        """Name of the schedule or strategy in tables; both strategies, the encoder's first, if the stacks differ."""
        if self.schedule:
            return LABELS.get(self.schedule, self.schedule)
        names = [LABELS.get(name, name) for name in self["sharing"].values()]
        label = " / ".join(dict.fromkeys(names))
        return f"MoEUT ({label})" if self.is_moeut else label

    def sizes(self, field: str) -> str:
        """Format ``layers`` or ``unique_layers``: one number if the stacks agree, else ``6+3``."""
        numbers = [self._range([result[field][stack] for result in self.results]) for stack in self[field]]
        return numbers[0] if len(set(numbers)) == 1 else "+".join(numbers)

    @property
    def title(self) -> str:
        """Label with M and N."""
        return f"{self.label}, M={self.sizes('unique_layers')}, N={self.sizes('layers')}"

    @property
    def speed(self) -> Spread | None:
        """Target tokens per second in training; None if no log contains them."""
        values = [result["tokens_per_second"] for result in self.results if result["tokens_per_second"]]
        return Spread.of(values) if values else None

    @property
    def updates(self) -> str:
        """Number of updates; a range if the seeds differ."""
        return self._range([result["updates"] for result in self.results])

    def parameters(self, kind: str) -> str:
        """Format the ``unique`` or ``effective`` parameters; a range if the seeds differ."""
        return self._range([result["parameters"][kind] for result in self.results])

    @property
    def macs(self) -> str:
        """Millions of MACs of a forward pass; a range if the seeds differ, empty unless every run records them."""
        found = [round(result["macs"] / 1e6, 1) for result in self.results if "macs" in result]
        return self._range(found, ",.1f") if len(found) == len(self.results) else ""

    @property
    def mean_parameters(self) -> str:
        """Trained unique parameters, averaged over the updates; all unique parameters for a fixed map."""
        return self._range([result.get("mean_parameters", result["parameters"]["unique"]) for result in self.results])

    @property
    def peak_memory(self) -> str:
        """Peak training memory in GiB, of the GPU or of a CPU process; a range if the seeds differ."""
        peaks = [result.get("peak_memory_bytes") for result in self.results]
        known = [round(peak / 2**30, 2) for peak in peaks if peak]
        return self._range(known, ".2f") if known else "-"

    @staticmethod
    def _range(values: Sequence[float], form: str = ",") -> str:
        return " to ".join(f"{value:{form}}" for value in dict.fromkeys((min(values), max(values))))

    @property
    def is_moeut(self) -> bool:
        """Whether the model is a MoEUT."""
        return "moeut" in str(self.results[0].get("arch"))

    def score(self, test: str, metric: str) -> Spread | None:
        """Summarize a metric on a test set; return None if no seed has it."""
        scores = [result["scores"].get(test, {}) for result in self.results]
        values = [score[metric] for score in scores if metric in score]
        return Spread.of(values) if values else None


def read_rows(folder: Path) -> list[Row]:
    """Read all results of a folder.

    Args:
        folder: a study, one JSON file per run.

    Returns:
        One row per experiment: vanilla first, then by strategy, M and N.

    Raises:
        SharingError: no such folder, no result in it, a file that is not a result, two results of the same run and
            seed, or runs that have the same name but are different experiments.
    """
    if not folder.is_dir():
        raise SharingError(f"{folder}: no such folder; allowed: a folder with result files (*.json)")
    by_run: dict[str, list[dict[str, Any]]] = {}
    origin: dict[tuple[str, int], Path] = {}
    files = sorted(folder.glob("*.json"))
    for file in files:
        result = read_result(file)
        key = (result["run"], result["seed"])
        if key in origin:
            raise SharingError(f"{file} and {origin[key]}: both are run {key[0]}, seed {key[1]}; keep only one")
        origin[key] = file
        group = by_run.setdefault(result["run"], [])
        if group and (name := _differing(result, group[0])):
            other = origin[group[0]["run"], group[0]["seed"]]
            raise SharingError(f"{file} and {other}: both are named {result['run']} but differ in {name}")
        group.append(result)
    if not files:
        raise SharingError(
            f"{folder}: contains no result (*.json); create results with: fairseq-sharing evaluate --out {folder}"
        )
    datasets = sorted({group[0]["dataset"] for group in by_run.values()})
    if len(datasets) > 1:
        raise SharingError(
            f"{folder}: results of several datasets ({', '.join(datasets)}); allowed: one dataset per folder"
        )
    rows = [Row(tuple(sorted(group, key=lambda result: result["seed"]))) for group in by_run.values()]
    return sorted(rows, key=_order)


def read_result(file: Path) -> dict[str, Any]:
    """Read one result file.

    Raises:
        SharingError: the file is not a result; the message names the missing or invalid field.
    """
    result = read_json(file, RESULT, "a result of evaluate", _NEEDED)
    if not result["scores"]:
        raise SharingError(f"{file}: contains no scores; allowed: scores of at least one test set")
    return result


def add_result(file: Path, folder: Path) -> None:
    """Copy a result and its hypotheses to a folder of results, over an earlier one of the same experiment.

    Args:
        file: the result file.
        folder: the folder.

    Raises:
        SharingError: the file is not a result, a file of hypotheses is missing, or the folder has the result of another
            experiment with the same name and seed.
    """
    result = read_result(file)
    copy = inside(folder, f"{result['run']}-seed{result['seed']}.json")
    if copy.is_file() and (name := _differing(result, read_result(copy))):
        raise SharingError(
            f"{copy}: the result of another experiment with this name ({name} differs); "
            "allowed: a run name of its own (train with run=NAME), or another folder"
        )
    for score in result["scores"].values():
        if hypotheses := score.get("hypotheses"):
            _copy(inside(file.parent, hypotheses), inside(folder, hypotheses))
    _copy(file, copy)


def _differing(result: dict[str, Any], other: dict[str, Any]) -> str | None:
    """Return a field in which results of the same name show that they are different experiments."""
    own_map = result.get("schedule") or "custom" in result["sharing"].values()
    return next((name for name in _COMMON if result[name] != other[name] and not (own_map and name in _OF_A_MAP)), None)


def _copy(source: Path, target: Path) -> None:
    if not source.is_file():
        raise SharingError(f"{source}: no such file; evaluate the run again")
    if source.resolve() != target.resolve():
        with atomic_write(target) as file:
            file.write(source.read_bytes())


def scored_sets(rows: Iterable[Row]) -> list[str]:
    """List the test sets of all rows in the order in which they were scored."""
    names = (name for row in rows for result in row.results for name in result["scores"])
    return list(dict.fromkeys(names))


def signatures(rows: Iterable[Row]) -> dict[str, list[str]]:
    """List the signatures per metric."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        for result in row.results:
            for score in result["scores"].values():
                for metric, signature in score.get("signature", {}).items():
                    found.setdefault(metric, {})[signature] = None
    return {metric: list(names) for metric, names in found.items()}


def _order(row: Row) -> tuple[Any, ...]:
    strategies = list(LABELS)
    rank = strategies.index(row.strategy) if row.strategy in strategies else len(strategies)
    return rank, sum(row["unique_layers"].values()), sum(row["layers"].values()), row.run
