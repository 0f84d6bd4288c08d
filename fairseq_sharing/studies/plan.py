"""Plan a study: its runs in order, and the command of each stage."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.settings import EvaluationSettings
from fairseq_sharing.experiment.config import compose
from fairseq_sharing.experiment.run_directory import RunDirectory
from fairseq_sharing.experiment.study import Study
from fairseq_sharing.terminal import say

# Beginnings of the overrides that apply to all rows.
_OVERRIDES = ("train.", "evaluate.", "tokens_per_batch=")


@dataclass(frozen=True)
class PlannedRun:
    """One row with one seed.

    Args:
        row: the row.
        seed: the seed.
        directory: the run directory.
    """

    row: str
    seed: int
    directory: RunDirectory

    @property
    def name(self) -> str:
        """Row and seed in words."""
        return f"{self.row}, seed {self.seed}"


@dataclass(frozen=True)
class StudyPlan:
    """A study as requested on the command line.

    Args:
        study: the study.
        config: the study's name or file as given.
        rows: rows to run; empty for all.
        seeds: seeds for every row; empty for those of the study.
        overrides: ``key=value`` overrides for every row.
        devices: GPUs, or CPU processes, per machine for each run; None for the default of ``train``.
        nodes: machines per run, under Slurm.
        mirror: directory or URL of the corpus files, for a machine that cannot download them.
        out: directory for the results and the report; ``runs/<study>/report`` if None.

    Raises:
        SharingError: an unknown row, a negative or repeated seed, or an override that the study fixes.
    """

    study: Study
    config: str
    rows: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    overrides: tuple[str, ...] = ()
    devices: int | None = None
    nodes: int = 1
    mirror: str | None = None
    out: Path | None = None

    def __post_init__(self) -> None:
        for row in self.rows:
            if row not in self.study.rows:
                raise SharingError(f"--rows {row}: no such row; allowed: {' '.join(self.study.rows)}")
        if any(seed < 0 for seed in self.seeds) or len(set(self.seeds)) < len(self.seeds):
            raise SharingError(f"--seeds {' '.join(map(str, self.seeds))}: allowed: whole numbers from 0, each once")
        for override in self.overrides:
            if not override.startswith(_OVERRIDES):
                allowed = ", ".join(_OVERRIDES)
                raise SharingError(f"{override}: fixed by the study, --rows and --seeds; allowed: {allowed}")

    @property
    def directory(self) -> Path:
        """The directory of the study's runs."""
        return Path("runs") / self.study.name

    @property
    def results(self) -> Path:
        """The directory for the results and the report."""
        return self.out or self.directory / "report"

    def chosen_rows(self) -> list[str]:
        """List the rows in study order, but the baseline first and rows with ``map_of`` last."""
        rows = [row for row in self.study.rows if row in (self.rows or self.study.rows)]
        return sorted(rows, key=lambda row: (row != self.study.baseline, row in self.study.map_of))

    @cached_property
    def runs(self) -> list[PlannedRun]:
        """The runs seed by seed, so that a study that is stopped early is complete for the finished seeds."""
        seeds = {row: self.seeds or self.study.seeds_of(row) for row in self.chosen_rows()}
        return [
            PlannedRun(row, seed, RunDirectory(self._directory(row, seed)))
            for seed in sorted({seed for of_row in seeds.values() for seed in of_row})
            for row, of_row in seeds.items()
            if seed in of_row
        ]

    def _directory(self, row: str, seed: int) -> Path:
        if row in self.study.checkpoints:
            return Path(self.study.checkpoints[row].replace("{seed}", str(seed)))
        return self.directory / f"{row}-seed{seed}"

    def is_trained_elsewhere(self, run: PlannedRun) -> bool:
        """Return whether a run is a checkpoint directory of plain ``fairseq-train``."""
        return run.row in self.study.checkpoints

    def origin(self, run: PlannedRun) -> RunDirectory | None:
        """Return the run whose final layer map a run trains with; None for a row without ``map_of``."""
        if run.row not in self.study.map_of:
            return None
        return RunDirectory(self.directory / f"{self.study.map_of[run.row]}-seed{run.seed}")

    def compose(self, run: PlannedRun) -> DictConfig:
        """Compose the configuration of a run, once."""
        if run.name not in self._composed:
            words = [f"row={run.row}", f"seed={run.seed}", *self.overrides]
            self._composed[run.name] = compose(self.study.file, words)
        return self._composed[run.name]

    @cached_property
    def _composed(self) -> dict[str, DictConfig]:
        return {}

    def check(self) -> None:
        """Check the configuration of every row and seed against fairseq-train and evaluate.

        Raises:
            SharingError: a key or value that fairseq-train or evaluate does not accept.
        """
        from fairseq_sharing import flags  # imports torch, which a plan alone does not need

        for row in self.chosen_rows():
            if row in self.study.checkpoints:
                continue
            # The final map of another row is unknown until that row is trained.
            check = None if row in self.study.map_of else flags.check
            compose(self.study.file, [f"row={row}", *self.overrides], check=check)
        for run in self.runs:
            if not self.is_trained_elsewhere(run):
                EvaluationSettings.of(self.compose(run).evaluate)

    def prepare(self) -> list[str] | None:
        """Return the command that prepares the data; None if it is prepared elsewhere."""
        data = self.study.data
        if data.data_bin is not None:
            return None
        words = ["fairseq-sharing", "prepare", data.recipe, "--out", f"data/{data.name}", *data.settings]
        return [*words, *(["--mirror", self.mirror] if self.mirror else [])]

    def train(self, run: PlannedRun) -> list[str]:
        """Return the command that trains a run."""
        words = ["fairseq-sharing", "train", self.config, f"row={run.row}", f"seed={run.seed}", *self.overrides]
        return [*words, "--devices", str(self.devices)] if self.devices else words

    def evaluate(self, run: PlannedRun) -> list[str]:
        """Return the command that averages, translates and scores a run."""
        words = ["fairseq-sharing", "evaluate", str(run.directory.path), "--out", str(self.results)]
        if not self.is_trained_elsewhere(run):
            return words
        data = self.study.data
        words += ["--run", run.row]
        if data.data_bin is None:
            return [*words, "--data", f"data/{data.name}"]
        return [*words, "--dataset", data.name, "--data-bin", data.data_bin, "--test", *data.tests]

    def report(self) -> list[str]:
        """Return the command that writes the report."""
        return ["fairseq-sharing", "report", str(self.results)]

    def stages(self) -> Iterator[list[str]]:
        """Yield all commands in order; each skips completed work."""
        if prepare := self.prepare():
            yield prepare
        for run in self.runs:
            if not self.is_trained_elsewhere(run):
                yield self.train(run)
            yield self.evaluate(run)
        yield self.report()


def show(command: Sequence[str], console: Console) -> None:
    """Print a command in shell syntax."""
    say(console, f"$ {shlex.join(command)}")
