"""Remove checkpoints that no result needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.averages import finished_average
from fairseq_sharing.evaluation.settings import EvaluationSettings
from fairseq_sharing.experiment.run_directory import RunDirectory
from fairseq_sharing.studies.states import State, read_directory
from fairseq_sharing.terminal import Console

# Kept in every run: averages, which translate and export use, and the state from which training can continue.
_KEPT = ("checkpoint_average", "checkpoint_last")


@dataclass(frozen=True)
class Removable:
    """The checkpoints of a run that can be removed.

    Attributes:
        run: the run directory.
        files: the checkpoints.
        size: their size in bytes.
    """

    run: Path
    files: tuple[Path, ...]
    size: int


def removable_checkpoints(folder: Path) -> list[Removable]:
    """Find the checkpoints of finished runs that no result needs.

    A run is finished if it was trained to its end and evaluated since. Its averaged checkpoints and
    ``checkpoint_last.pt`` are kept. Runs that are being trained or evaluated are skipped, and so are runs whose average
    is missing or damaged, since it could not be made again.

    Args:
        folder: a run directory, a directory of runs, or a directory of studies.
    """
    found = []
    for path in _run_directories(folder):
        run = RunDirectory(path)
        if read_directory(run, None, None).state != State.FINISHED or not _has_average(run):
            continue
        files = tuple(
            file
            for file in sorted(run.checkpoints.glob("checkpoint*.pt"))
            if not file.name.startswith(_KEPT) and not file.is_symlink()
        )
        if files:
            found.append(Removable(path, files, sum(file.stat().st_size for file in files)))
    return found


def remove(removable: Removable) -> None:
    """Remove the checkpoints of one run, while no training and no evaluation holds its locks."""
    run = RunDirectory(removable.run)
    with run.locked(), run.evaluating():
        for file in removable.files:
            file.unlink(missing_ok=True)


def _has_average(run: RunDirectory) -> bool:
    """Return whether the average that ``translate`` and ``export`` use is there, complete and unchanged."""
    count = EvaluationSettings.of_run(run.config()).average_last
    return finished_average(run, count, Console(stderr=True)) is not None


def _run_directories(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise SharingError(f"{folder}: no such directory; allowed: a run directory or a directory of runs")
    patterns = ("run.json", "*/run.json", "*/*/run.json")
    return sorted(file.parent for pattern in patterns for file in folder.glob(pattern))
