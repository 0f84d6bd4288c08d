"""The averages of a run's last epochs that are there, and what they were made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.steps import Steps
from fairseq_sharing.experiment.run_directory import RunDirectory
from fairseq_sharing.files import sha256

AVERAGE = "checkpoint_average.pt"  # of as many epochs as the run's configuration says; translate and export take it


def average_name(count: int, configured: int) -> str:
    """Name the average of a number of epochs: one that the configuration does not say has a file of its own."""
    return AVERAGE if count == configured else f"checkpoint_average_last{count}.pt"


def finished_average(run: RunDirectory, count: int, console: Console) -> Path | None:
    """Find the average that the configuration asks for.

    Args:
        run: the run.
        count: of how many epochs.
        console: where an average is reported whose epochs have been removed.

    Returns:
        The file; None where it is missing, or not the average of the checkpoints that are there now.

    Raises:
        SharingError: a running training deletes the checkpoints.
    """
    from fairseq_sharing.checkpoints.choose import epoch_checkpoints

    if left := average_left(run, AVERAGE, console):
        return left
    averaged = run.checkpoints / AVERAGE
    inputs = hashes(epoch_checkpoints(run.checkpoints)[-count:])
    return averaged if Steps(run.steps_file).is_done(AVERAGE, inputs, averaged) else None


def average_left(run: RunDirectory, name: str, console: Console) -> Path | None:
    """Find an average whose epochs have been removed: of that name, else the configuration's; report it."""
    from fairseq_sharing.checkpoints.choose import epoch_checkpoints
    from fairseq_sharing.checkpoints.files import load_checkpoint

    if epoch_checkpoints(run.checkpoints):
        return None
    for file in (run.checkpoints / name, run.checkpoints / AVERAGE):
        if file.is_file() and load_checkpoint(file).get("averaged"):
            console.print(f"{file}: taken as it is, no epoch checkpoint is left", markup=False, soft_wrap=True)
            return file
    return None


def hashes(checkpoints: Sequence[Path]) -> dict[str, Any]:
    """Identify the checkpoints that are averaged by their content.

    Raises:
        SharingError: a running training deletes one.
    """
    try:
        return {"checkpoints": {file.name: sha256(file) for file in checkpoints}}
    except FileNotFoundError:
        refuse_deleted(checkpoints)
        raise


def refuse_deleted(checkpoints: Sequence[Path]) -> None:
    """Explain a failure to read checkpoints where one has been deleted meanwhile.

    Raises:
        SharingError: naming it.
    """
    for file in checkpoints:
        if not file.is_file():
            raise SharingError(
                f"{file}: was deleted while it was read, as a running training does (train.keep_last_epochs); "
                "try again, or when the training has finished"
            )


def last_epoch_checkpoints(directory: Path, count: int) -> list[Path]:
    """Choose the checkpoints to average: those of the last epochs, by the number in their name.

    Args:
        directory: a run's checkpoints; its best, last and averaged files don't count, nor those within an epoch where
            any epoch has ended.
        count: how many.

    Returns:
        At most that many files, oldest first.

    Raises:
        SharingError: there is none.
    """
    from fairseq_sharing.checkpoints.choose import (
        epoch_checkpoints,  # torch, which --help and bad input need not wait for
    )

    files = epoch_checkpoints(directory)
    if not files:
        raise SharingError(f"{directory}: no epoch checkpoint (checkpoint<epoch>.pt) to evaluate")
    return files[-count:]


def average_last_epochs(
    run: RunDirectory, count: int, steps: Steps, console: Console, name: str = AVERAGE
) -> tuple[Path, list[str], dict[str, Any]]:
    """Average the checkpoints of a run's last epochs, unless that is done or only their average is left.

    Args:
        run: the run, held by its ``evaluating``.
        count: how many; a run that has fewer says so.
        steps: the finished steps of its evaluation.
        console: where that is said.
        name: the file's name.

    Returns:
        The averaged checkpoint, the names of those it was made from, and what identifies its content.

    Raises:
        SharingError: there is none, or a training deletes them meanwhile.
    """
    from fairseq_sharing.checkpoints.averaging import average_checkpoints
    from fairseq_sharing.checkpoints.files import load_checkpoint

    if left := average_left(run, name, console):
        return left, load_checkpoint(left)["averaged"], {"checkpoint": sha256(left)}
    averaged = run.checkpoints / name
    checkpoints = last_epoch_checkpoints(run.checkpoints, count)
    if len(checkpoints) < count:
        number = len(checkpoints)
        console.print(f"averaging {number}, not {count}: {run.checkpoints} holds no more", markup=False, soft_wrap=True)
    inputs = hashes(checkpoints)
    if not steps.is_done(name, inputs, averaged):
        try:
            average_checkpoints(checkpoints, averaged)
        except SharingError:
            refuse_deleted(checkpoints)
            raise
        steps.record(name, inputs, averaged)
    return averaged, [file.name for file in checkpoints], {"checkpoint": sha256(averaged)}
