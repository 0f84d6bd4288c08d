"""Run a whole study, locally or under Slurm: prepare the data, train every row with every seed, evaluate, report."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.config import compose
from fairseq_sharing.experiment.run_directory import RunDirectory, config_changes
from fairseq_sharing.experiment.study import Study
from fairseq_sharing.resources import PACKAGE_DIR
from fairseq_sharing.training.processes import forwarded_signals

SBATCH = PACKAGE_DIR.parent / "scripts" / "slurm" / "train.sbatch"


# Beginnings of the changes that a table takes for all rows.
_OVERRIDES = ("train.", "evaluate.", "tokens_per_batch=")


@dataclass(frozen=True)
class Run:
    """One row with one seed.

    Args:
        row: the row.
        seed: the seed.
        path: the run directory.
    """

    row: str
    seed: int
    path: Path


@dataclass(frozen=True)
class Table:
    """The settings of the ``table`` command.

    Args:
        study: the study.
        config: the study as given on the command line.
        rows: rows to run; empty for all.
        seeds: seeds for every row; empty for those of the study.
        overrides: ``key=value`` overrides for every row.
        devices: GPUs, or CPU processes, per machine for each run; None for the default of ``train``.
        nodes: machines per run, under Slurm.
        mirror: directory or URL of the corpus files, for a machine that cannot download them.
        out: directory for the results and the report; ``runs/<study>/report`` if None.

    Raises:
        SharingError: an unknown row.
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
        for override in self.overrides:
            if not override.startswith(_OVERRIDES):
                allowed = ", ".join(_OVERRIDES)
                raise SharingError(f"{override}: fixed by the study, --rows and --seeds; allowed: {allowed}")

    @property
    def results(self) -> Path:
        """The directory for the results and the report."""
        return self.out or Path("runs") / self.study.name / "report"

    def chosen_rows(self) -> list[str]:
        """List the rows in study order, but the baseline first and rows with ``map_of`` last."""
        rows = [row for row in self.study.rows if row in (self.rows or self.study.rows)]
        return sorted(rows, key=lambda row: (row != self.study.baseline, row in self.study.map_of))

    def runs(self) -> list[Run]:
        """List the runs seed by seed, so that a table that is stopped early is complete for the finished seeds."""
        seeds = {row: self.seeds or self.study.seeds_of(row) for row in self.chosen_rows()}
        return [
            Run(row, seed, Path("runs") / self.study.name / f"{row}-seed{seed}")
            for seed in sorted({seed for of_row in seeds.values() for seed in of_row})
            for row, of_row in seeds.items()
            if seed in of_row
        ]

    def check(self) -> None:
        """Check the configuration of every row against fairseq-train.

        Raises:
            SharingError: a key or value that fairseq-train does not accept.
        """
        from fairseq_sharing import flags  # imports torch, which a table alone does not need

        for row in self.chosen_rows():
            # The final map of another row is unknown until that row is trained.
            check = None if row in self.study.map_of else flags.check
            compose(self.study.file, [f"row={row}", *self.overrides], check=check)

    def prepare(self) -> list[str]:
        """Return the command that prepares the data."""
        data = self.study.data
        words = ["fairseq-sharing", "prepare", data.recipe, "--out", f"data/{data.name}", *data.settings]
        return [*words, *(["--mirror", self.mirror] if self.mirror else [])]

    def train(self, run: Run) -> list[str]:
        """Return the command that trains a run."""
        words = ["fairseq-sharing", "train", self.config, f"row={run.row}", f"seed={run.seed}", *self.overrides]
        return [*words, "--devices", str(self.devices)] if self.devices else words

    def evaluate(self, run: Run) -> list[str]:
        """Return the command that averages, translates and scores a run."""
        return ["fairseq-sharing", "evaluate", str(run.path), "--out", str(self.results)]

    def report(self) -> list[str]:
        """Return the command that writes the report."""
        return ["fairseq-sharing", "report", str(self.results)]

    def stages(self) -> list[list[str]]:
        """Return all commands in order; each skips completed work."""
        stages = [self.prepare()]
        for run in self.runs():
            stages += [self.train(run), self.evaluate(run)]
        return [*stages, self.report()]

    def job_lines(self) -> list[str]:
        """Return one shell command per run for the Slurm array job, which sets ``$MACHINES``."""
        return [f"{shlex.join(self.train(run))} $MACHINES" for run in self.runs()]

    def submission(self, file: Path, flags: str) -> list[str]:
        """Return the command that submits the array job.

        Args:
            file: the file with ``job_lines``.
            flags: additional sbatch flags, e.g. ``--partition gpu --time 24:00:00``.
        """
        gpus = ["--gpus-per-node", str(self.devices)] if self.devices else []
        array = [f"--array=1-{len(self.runs())}", "--nodes", str(self.nodes), *gpus]
        return ["sbatch", "--parsable", *array, *shlex.split(flags), str(SBATCH), str(file)]


def make(table: Table, console: Console) -> None:
    """Run every stage. If a row fails, the other rows continue; re-run to resume.

    Args:
        table: the settings.
        console: where commands are printed.

    Raises:
        SharingError: the data or the report failed, or, after all other rows have finished, some rows failed. Each
            failed command has printed its error.
        KeyboardInterrupt, SystemExit: after a signal, when the stage has ended.
    """
    table.check()
    call(table.prepare(), console)
    failed = []
    for run in table.runs():
        try:
            # A finished run can be scored on any machine, even without the devices that trained it.
            if not _is_trained(table, run):
                call(table.train(run), console)
            call(table.evaluate(run), console)
        except SharingError as error:
            console.print(f"{error}; continuing with the other rows", highlight=False, markup=False, soft_wrap=True)
            failed.append(str(run.path))
    call(table.report(), console)
    if failed:
        raise SharingError(f"not in the table: {', '.join(failed)}; re-run the command to resume them")


def _is_trained(table: Table, run: Run) -> bool:
    """Return whether a run has finished with the training settings of the table."""
    directory = RunDirectory(run.path)
    if directory.record().get("exit_status") != 0:
        return False
    wanted = compose(table.study.file, [f"row={run.row}", f"seed={run.seed}", *table.overrides])
    return not any(key.startswith("train.") for key in config_changes(directory.config(), wanted))


def submit(table: Table, flags: str, console: Console) -> str:
    """Prepare the data on this machine, then submit an array job that trains all runs.

    Args:
        table: the settings.
        flags: additional sbatch flags.
        console: where commands are printed.

    Returns:
        The Slurm job ID.

    Raises:
        SharingError: a stage failed, sbatch is missing or failed, or the package is not run from a clone.
    """
    if not SBATCH.is_file():
        raise SharingError(f"--slurm: {SBATCH} is missing; run the command in a clone of the repository")
    table.check()
    call(table.prepare(), console)
    file = job_file(table)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(line + "\n" for line in table.job_lines()), encoding="utf-8")
    command = table.submission(file, flags)
    show(command, console)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SharingError("--slurm: sbatch not found; run the command on a machine that can submit jobs") from None
    if done.returncode:
        raise SharingError(f"--slurm: sbatch failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


def job_file(table: Table) -> Path:
    """Return the file for the lines of the array job."""
    return Path("runs") / "slurm" / f"{table.study.name}.txt"


def call(command: Sequence[str], console: Console) -> None:
    """Print and run a fairseq-sharing command, and forward signals to it."""
    show(command, console)
    process = subprocess.Popen([sys.executable, "-P", "-m", "fairseq_sharing", *command[1:]], start_new_session=True)
    with forwarded_signals(process) as received:
        status = process.wait()
    if received:
        raise KeyboardInterrupt if received[0] == signal.SIGINT else SystemExit(128 + received[0])
    if status:
        raise SharingError(f"{shlex.join(command[:3])} failed (exit status {status}); re-run the command to resume")


def show(command: Sequence[str], console: Console) -> None:
    """Print a command in shell syntax."""
    console.print(f"$ {shlex.join(command)}", highlight=False, markup=False, soft_wrap=True)
