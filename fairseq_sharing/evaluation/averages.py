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
