"""Choose checkpoints in a folder: the newest one to resume from, and those to average."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairseq_sharing.checkpoints.files import load_checkpoint
from fairseq_sharing.errors import SharingError


def newest_readable(
    directory: str | os.PathLike[str],
    suffix: str = "",
    optimizer_state: bool = True,
    foreign: Sequence[str | os.PathLike[str]] = (),
) -> Path | None:
    """Find the newest checkpoint in a folder that a training can resume from.

    Args:
        directory, suffix: fairseq's --save-dir and --checkpoint-suffix.
        optimizer_state: whether a file requires the optimizer's state.
        foreign: files of other trainings, which may be in the folder.

    Returns:
        ``checkpoint_last.pt`` if it is complete and its validation loss was finite, else such a checkpoint with the
        most updates among fairseq's epoch, update-interval and best checkpoints. None if there is none.
    """
    last = Path(directory, f"checkpoint_last{suffix}.pt")
    written = rf"checkpoint(\d+|_\d+_\d+|_best|\.best_.+){re.escape(suffix)}\.pt"
    others = [path for path in Path(directory).glob("checkpoint*.pt") if re.fullmatch(written, path.name)]
    complete: list[tuple[int, Path]] = []
    others = [path for path in others if path.resolve() not in [Path(name).resolve() for name in foreign]]
    for path in [last, *sorted(others)]:
        try:
            checkpoint = load_checkpoint(path)
        except SharingError:
            continue
        if not missing_parts(checkpoint, optimizer_state) and not has_diverged(checkpoint):
            if path == last:
                return last
            complete.append((checkpoint["optimizer_history"][-1]["num_updates"], path))
    return max(complete)[1] if complete else None


def missing_parts(checkpoint: Mapping[str, Any], optimizer_state: bool = True) -> list[str]:
    """List the parts that a checkpoint lacks for resuming; the optimizer's state only if requested."""
    history, extra = checkpoint.get("optimizer_history") or [{}], checkpoint.get("extra_state")
    found = {
        "last_optimizer_state": not optimizer_state or checkpoint.get("last_optimizer_state") is not None,
        "optimizer_history": "num_updates" in history[-1],
        "extra_state": isinstance(extra, Mapping) and "train_iterator" in extra,
    }
    return [part for part, there in found.items() if not there]


def has_diverged(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether the validation loss at a complete checkpoint was NaN or infinite."""
    loss = checkpoint["extra_state"].get("val_loss")
    return isinstance(loss, float) and not math.isfinite(loss)


def epoch_checkpoints(directory: str | os.PathLike[str]) -> list[Path]:
    """List the checkpoints to average in a folder, oldest first.

    These are the checkpoints of whole epochs (``checkpointN.pt``); if no epoch has ended yet, those written by
    --save-interval-updates (``checkpoint_N_UPDATES.pt``).
    """
    for pattern in (r"checkpoint(\d+)\.pt", r"checkpoint_\d+_(\d+)\.pt"):
        numbered = {
            int(match[1]): path
            for path in Path(directory).glob("checkpoint*.pt")
            if (match := re.fullmatch(pattern, path.name))
        }
        if numbered:
            return [numbered[number] for number in sorted(numbered)]
    return []


def checkpoints_to_average(directory: str | os.PathLike[str]) -> list[Path]:
    """List the checkpoints to average, oldest first: those of `epoch_checkpoints`, otherwise the last checkpoint.

    A run that stopped in its first epoch, or has --no-epoch-checkpoints, has only ``checkpoint_last.pt``.
    """
    last = Path(directory, "checkpoint_last.pt")
    return epoch_checkpoints(directory) or ([last] if last.is_file() else [])


def last_epochs(directory: str | os.PathLike[str], count: int) -> list[Path]:
    """List the checkpoints of the last ``count`` epochs in a folder, oldest first.

    Raises:
        SharingError: there are fewer checkpoints, or the count is below 1.
    """
    files = epoch_checkpoints(directory)
    if not 1 <= count <= len(files):
        raise SharingError(f"{directory}: contains {len(files)} epoch checkpoints, cannot average the last {count}")
    return files[-count:]
