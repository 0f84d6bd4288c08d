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
from fairseq_sharing.resources import PACKAGE_DIR
from fairseq_sharing.training.processes import forwarded_signals

# The rows of Takase & Kiyono 2023, Table 2, in its order.
PAPER_ROWS = (
    *("vanilla", "admin", "universal_n6", "universal_n12", "vanilla_big"),
    *("sequence_n12", "cycle_n12", "cycle_rev_n12", "sequence_n18", "cycle_n18", "cycle_rev_n18"),
)
SBATCH = PACKAGE_DIR.parent / "scripts" / "slurm" / "train.sbatch"


@dataclass(frozen=True)
class Preset:
    """A table that can be made.

    Args:
        dataset: name of the data: its folder in ``data/``.
        rows: configurations, the baseline first.
        configs: what stands before a row's name in ``configs/``.
        pairs: sentence pairs to train on, for estimates; those of the corpus before cleaning.
        vocabulary: entries of the dictionary, for estimates before the data is prepared.
        recipe: name of the data's recipe; that of the data if not given.
        settings: flags of ``prepare`` that change the recipe.
    """

    dataset: str
    rows: tuple[str, ...]
    configs: str
    pairs: int
    vocabulary: int
    recipe: str | None = None
    settings: tuple[str, ...] = ()


_MULTI30K = ("vanilla", "sequence", "cycle", "cycle_rev", "universal", "vanilla_deep")
PRESETS = {
    "wmt16_en_de": Preset("wmt16_en_de", PAPER_ROWS, "wmt16_en_de/", 4_500_000, 32_768),
    "news_commentary": Preset("news_commentary", PAPER_ROWS, "news_commentary/", 230_000, 32_768),
    "news_commentary_cpu": Preset(
        *("news_commentary_8k", PAPER_ROWS, "news_commentary_8k/", 230_000, 8_192),
        recipe="news_commentary",
        settings=("--subword-size", "8000"),
    ),
    "multi30k": Preset("multi30k", _MULTI30K, "multi30k/", 29_000, 10_000),
}


@dataclass(frozen=True)
class Run:
    """One row with one seed.

    Args:
        config: its configuration file.
        path: its run directory.
        seed: its seed.
    """

    config: str
    path: Path
    seed: int


@dataclass(frozen=True)
class Table:
    """What is asked for.

    Args:
        preset: the table.
        rows: some of its rows; empty for all.
        seeds: the seeds of every row.
        overrides: ``key=value`` changes to every configuration.
        devices: GPUs, or CPU processes, of a training; None for the launcher's own choice.
        nodes: machines of a training, under Slurm.
        mirror: folder or URL of the corpus's files, for a machine that cannot download them.
        out: folder of the results and the report; ``runs/<dataset>/report`` when None.

    Raises:
        SharingError: an unknown row, or no seed.
    """

    preset: Preset
    rows: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (1,)
    overrides: tuple[str, ...] = ()
    devices: int | None = None
    nodes: int = 1
    mirror: str | None = None
    out: Path | None = None

    @property
    def results(self) -> Path:
        """The folder of the results and the report."""
        return self.out or Path("runs") / self.preset.dataset / "report"

    def __post_init__(self) -> None:
        for row in self.rows:
            if row not in self.preset.rows:
                raise SharingError(f"--rows: no row {row}; allowed: {' '.join(self.preset.rows)}")
        if not self.seeds:
            raise SharingError("--seeds needs at least one seed")

    def runs(self) -> list[Run]:
        """List the runs: all rows of a seed before the next seed, the baseline first."""
        preset, runs = self.preset, []
        for seed in self.seeds:
            for row in (row for row in preset.rows if row in (self.rows or preset.rows)):
                config = f"configs/{preset.configs}{row}.yaml"
                run = compose(config, [f"seed={seed}", *self.overrides]).run
                runs.append(Run(config, Path("runs") / preset.dataset / f"{run}-seed{seed}", seed))
        return runs

    def check(self) -> None:
        """Check every row's configuration against fairseq-train.

        Raises:
            SharingError: a key or value that it does not take.
        """
        for config in {run.config: None for run in self.runs()}:
            compose(config, self.overrides, check=flags.check)

    def prepare(self) -> list[str]:
        """Return the command that prepares the data."""
        preset = self.preset
        words = ["fairseq-sharing", "prepare", preset.recipe or preset.dataset, "--out", f"data/{preset.dataset}"]
        return [*words, *preset.settings, *(["--mirror", self.mirror] if self.mirror else [])]

    def train(self, run: Run) -> list[str]:
        """Return the command that trains a run."""
        words = ["fairseq-sharing", "train", run.config, f"seed={run.seed}", *self.overrides]
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
    return Path("runs") / "slurm" / f"{table.preset.configs.replace('/', '-').strip('-_')}.txt"


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
