"""Average the checkpoints of a run's last epochs, or reuse an existing average."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.steps import Steps
from fairseq_sharing.experiment.run_directory import RunDirectory
from fairseq_sharing.files import sha256

AVERAGE = "checkpoint_average.pt"  # of the number of epochs in the run's configuration; translate and export use it


def average_name(count: int, configured: int) -> str:
    """Name the file of an average; a number of epochs other than the configured one gets a separate file."""
    return AVERAGE if count == configured else f"checkpoint_average_last{count}.pt"


def finished_average(run: RunDirectory, count: int, console: Console) -> Path | None:
    """Find the average that the configuration specifies.

    Args:
        run: the run.
        count: number of epochs.
        console: reports an average whose epoch checkpoints were removed.

    Returns:
        The file; None if it is missing or is not the average of the current checkpoints.

    Raises:
        SharingError: a running training deleted a checkpoint.
    """
    from fairseq_sharing.checkpoints.choose import checkpoints_to_average

    if left := average_left(run, AVERAGE, console):
        return left
    averaged = run.checkpoints / AVERAGE
    inputs = hashes(checkpoints_to_average(run.checkpoints)[-count:])
    return averaged if Steps(run.steps_file).is_done(AVERAGE, inputs, averaged) else None


def average_left(run: RunDirectory, name: str, console: Console) -> Path | None:
    """Find and report an average whose epoch checkpoints were removed; prefer ``name`` over the configured average."""
    from fairseq_sharing.checkpoints.choose import epoch_checkpoints
    from fairseq_sharing.checkpoints.files import load_checkpoint

    if epoch_checkpoints(run.checkpoints):
        return None
    for file in (run.checkpoints / name, run.checkpoints / AVERAGE):
        names = load_checkpoint(file).get("averaged") if file.is_file() else None
        if names and not any((run.checkpoints / name).is_file() for name in names):
            console.print(
                f"{file}: using this existing average, since no epoch checkpoints are left",
                markup=False,
                soft_wrap=True,
            )
            return file
    return None


def hashes(checkpoints: Sequence[Path]) -> dict[str, Any]:
    """Return the hashes of the checkpoints to average.

    Raises:
        SharingError: a running training deleted a checkpoint.
    """
    try:
        return {"checkpoints": {file.name: sha256(file) for file in checkpoints}}
    except FileNotFoundError:
        refuse_deleted(checkpoints)
        raise


def refuse_deleted(checkpoints: Sequence[Path]) -> None:
    """Explain a failure to read checkpoints if one of them was deleted in the meantime.

    Raises:
        SharingError: a checkpoint was deleted; the message names it.
    """
    for file in checkpoints:
        if not file.is_file():
            raise SharingError(
                f"{file}: deleted during evaluation, probably by a running training (train.keep_last_epochs); "
                "try again, or wait until training has finished"
            )


def last_epoch_checkpoints(directory: Path, count: int) -> list[Path]:
    """Choose the checkpoints to average: those of the last epochs, by the number in their name.

    Args:
        directory: a run's checkpoints. Best and averaged checkpoints are ignored; mid-epoch checkpoints are used only
            if no epoch has ended, and the last checkpoint only if there is no other.
        count: number of checkpoints.

    Returns:
        At most ``count`` files, oldest first.

    Raises:
        SharingError: there is no such checkpoint.
    """
    from fairseq_sharing.checkpoints.choose import (
        checkpoints_to_average,  # imports torch, which --help and input checks do not need
    )

    files = checkpoints_to_average(directory)
    if not files:
        raise SharingError(f"{directory}: no checkpoint (checkpoint<epoch>.pt or checkpoint_last.pt) to evaluate")
    return files[-count:]


def average_last_epochs(
    run: RunDirectory, count: int, steps: Steps, console: Console, name: str = AVERAGE
) -> tuple[Path, list[str], dict[str, Any]]:
    """Average the checkpoints of a run's last epochs, unless an average already exists.

    Args:
        run: the run, locked by its ``evaluating``.
        count: number of epochs; fewer are reported and averaged if the run has no more.
        steps: the finished steps of its evaluation.
        console: reports fewer epochs and existing averages.
        name: name of the averaged file.

    Returns:
        The averaged checkpoint, the names of the checkpoints it was made from, and its hash.

    Raises:
        SharingError: there is no checkpoint to average, or a running training deleted one.
    """
    from fairseq_sharing.checkpoints.averaging import average_checkpoints
    from fairseq_sharing.checkpoints.files import load_checkpoint

    if left := average_left(run, name, console):
        return left, load_checkpoint(left)["averaged"], {"checkpoint": sha256(left)}
    averaged = run.checkpoints / name
    checkpoints = last_epoch_checkpoints(run.checkpoints, count)
    number = len(checkpoints)
    if checkpoints[0].name == "checkpoint_last.pt":
        console.print(f"using {checkpoints[0]}: there is no epoch checkpoint", markup=False, soft_wrap=True)
    elif number < count:
        console.print(
            f"averaging {number} checkpoint{'s' * (number > 1)} instead of {count}: {run.checkpoints} has no more",
            markup=False,
            soft_wrap=True,
        )
    inputs = hashes(checkpoints)
    if not steps.is_done(name, inputs, averaged):
        try:
            average_checkpoints(checkpoints, averaged)
        except SharingError:
            refuse_deleted(checkpoints)
            raise
        steps.record(name, inputs, averaged)
    return averaged, [file.name for file in checkpoints], {"checkpoint": sha256(averaged)}
