"""Make a whole table: prepare the data, train every row with every seed, evaluate, report; in one go or under Slurm."""

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
from fairseq_sharing.experiment.run_directory import RunDirectory
from fairseq_sharing.experiment.study import Study
from fairseq_sharing.resources import PACKAGE_DIR
from fairseq_sharing.training.processes import forwarded_signals

SBATCH = PACKAGE_DIR.parent / "scripts" / "slurm" / "train.sbatch"


@dataclass(frozen=True)
class Run:
    """One row with one seed.

    Args:
        row: its row.
        seed: its seed.
        path: its run directory.
    """

    row: str
    seed: int
    path: Path


@dataclass(frozen=True)
class Table:
    """What is asked for.

    Args:
        study: the study.
        config: the study as the command line names it.
        rows: some of its rows; empty for all.
        seeds: the seeds of every row; empty for those of the study.
        overrides: ``key=value`` changes to every row.
        devices: GPUs, or CPU processes, of a training; None for the launcher's own choice.
        nodes: machines of a training, under Slurm.
        mirror: folder or URL of the corpus's files, for a machine that cannot download them.
        out: folder of the results and the report; ``runs/<study>/report`` when None.

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
                raise SharingError(f"--rows: no row {row}; allowed: {' '.join(self.study.rows)}")

    @property
    def results(self) -> Path:
        """The folder of the results and the report."""
        return self.out or Path("runs") / self.study.name / "report"

    def chosen_rows(self) -> list[str]:
        """List the rows in the order of the study: the baseline first, rows that train with another row's map last."""
        rows = [row for row in self.study.rows if row in (self.rows or self.study.rows)]
        return sorted(rows, key=lambda row: (row != self.study.baseline, row in self.study.map_of))

    def runs(self) -> list[Run]:
        """List the runs: all rows of a seed before the next seed, so that a table stopped early is complete."""
        seeds = {row: self.seeds or self.study.seeds_of(row) for row in self.chosen_rows()}
        return [
            Run(row, seed, Path("runs") / self.study.name / f"{row}-seed{seed}")
            for seed in sorted({seed for of_row in seeds.values() for seed in of_row})
            for row, of_row in seeds.items()
            if seed in of_row
        ]

    def check(self) -> None:
        """Check every row's configuration against fairseq-train.

        Raises:
            SharingError: a key or value that it does not take.
        """
        from fairseq_sharing import flags  # torch, which a table alone does not need

        for row in self.chosen_rows():
            # The map of another row is not known before that row is trained.
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
        """Return every command, in order; each skips what an earlier start has done."""
        stages = [self.prepare()]
        for run in self.runs():
            stages += [self.train(run), self.evaluate(run)]
        return [*stages, self.report()]

    def job_lines(self) -> list[str]:
        """Return a shell command a run for Slurm's array job; ``$MACHINES`` is its task's."""
        return [f"{shlex.join(self.train(run))} $MACHINES" for run in self.runs()]

    def submission(self, file: Path, flags: str) -> list[str]:
        """Return the command that submits the array job of a file of ``job_lines``.

        Args:
            file: the file.
            flags: further flags of sbatch, as in ``--partition gpu --time 24:00:00``.
        """
        gpus = ["--gpus-per-node", str(self.devices)] if self.devices else []
        array = [f"--array=1-{len(self.runs())}", "--nodes", str(self.nodes), *gpus]
        return ["sbatch", "--parsable", *array, *shlex.split(flags), str(SBATCH), str(file)]


def make(table: Table, console: Console) -> None:
    """Run every stage; a row that fails holds up no other. Started again, it goes on where it was.

    Args:
        table: what is asked for.
        console: where the commands are shown.

    Raises:
        SharingError: the data, the report, or, when all others are made, some rows failed; each has told why.
        KeyboardInterrupt, SystemExit: after a signal, when the stage has ended.
    """
    table.check()
    call(table.prepare(), console)
    failed = []
    for run in table.runs():
        try:
            # A finished run is scored on any machine, also on one without the devices that trained it.
            if table.overrides or not _is_trained(run):
                call(table.train(run), console)
            call(table.evaluate(run), console)
        except SharingError as error:
            console.print(f"{error}; the other rows go on", highlight=False, markup=False, soft_wrap=True)
            failed.append(str(run.path))
    call(table.report(), console)
    if failed:
        raise SharingError(f"not in the table: {', '.join(failed)}; started again, it goes on with them")


def _is_trained(run: Run) -> bool:
    return RunDirectory(run.path).record().get("exit_status") == 0


def submit(table: Table, flags: str, console: Console) -> str:
    """Prepare the data here, then submit an array job that trains all runs.

    Args:
        table: what is asked for.
        flags: further flags of sbatch.
        console: where the commands are shown.

    Returns:
        The job's number.

    Raises:
        SharingError: a stage failed, sbatch is not there or refuses, or this is no clone.
    """
    if not SBATCH.is_file():
        raise SharingError(f"--slurm: no {SBATCH}; run it in a clone of the repository")
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
        raise SharingError("--slurm: no sbatch on this machine; run it where jobs are submitted") from None
    if done.returncode:
        raise SharingError(f"--slurm: sbatch failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


def job_file(table: Table) -> Path:
    """Say where the lines of the array job are written."""
    return Path("runs") / "slurm" / f"{table.study.name}.txt"


def call(command: Sequence[str], console: Console) -> None:
    """Show and run one of this project's commands, and pass signals on to it."""
    show(command, console)
    process = subprocess.Popen([sys.executable, "-P", "-m", "fairseq_sharing", *command[1:]], start_new_session=True)
    with forwarded_signals(process) as received:
        status = process.wait()
    if received:
        raise KeyboardInterrupt if received[0] == signal.SIGINT else SystemExit(128 + received[0])
    if status:
        raise SharingError(f"{shlex.join(command[:3])} failed (exit status {status}); started again, it goes on there")


def show(command: Sequence[str], console: Console) -> None:
    """Print a command as it could be typed."""
    console.print(f"$ {shlex.join(command)}", highlight=False, markup=False, soft_wrap=True)
