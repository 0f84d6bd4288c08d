"""Choose the checkpoint to resume from if ``checkpoint_last.pt`` is damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fairseq_sharing.checkpoints.choose import has_diverged, missing_parts, newest_readable
from fairseq_sharing.checkpoints.files import load_checkpoint
from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import leftovers

_OTHER_SOURCES = ("finetune_from_model", "continue_once")  # fairseq uses them only if there is no last checkpoint
_RESETS = ("reset_optimizer", "reset_lr_scheduler", "reset_meters", "reset_dataloader")


def find_fallback(cfg: Any, trainer: Any) -> tuple[Path, str] | None:
    """Find the checkpoint to resume from instead of ``checkpoint_last.pt``.

    As in fairseq, a missing ``checkpoint_last.pt`` starts a new training, unless its temporary file shows that the
    process was killed while writing it for the first time.

    Args:
        cfg: fairseq's checkpoint options.
        trainer: fairseq's trainer.

    Returns:
        The checkpoint with the most updates among those that fairseq wrote, and the problem with the last checkpoint.
        None to keep fairseq's choice: the last checkpoint is complete or missing, the options reset a part of it, or
        the model is not from this package.

    Raises:
        SharingError: the last checkpoint cannot be read or its validation loss was not finite, and there is no other
            checkpoint.
    """
    if cfg.restore_file != "checkpoint_last.pt" or any(getattr(cfg, name, None) for name in _RESETS):
        return None
    if not any(kind.__module__.startswith("fairseq_sharing.") for kind in type(trainer.get_model()).__mro__):
        return None
    suffix, optimizer_state = trainer.checkpoint_suffix, not cfg.no_save_optimizer_state
    last = Path(cfg.save_dir, f"checkpoint_last{suffix}.pt")
    elsewhere = [path for name in _OTHER_SOURCES if (path := getattr(cfg, name, None))]
    if not last.exists() and (elsewhere or not any(leftovers(last))):
        return None
    newest = newest_readable(cfg.save_dir, suffix, optimizer_state, elsewhere)
    if newest == last:
        return None
    problem, usable = f"{last}: was not written completely", False
    if last.exists():
        try:
            missing = missing_parts(checkpoint := load_checkpoint(last), optimizer_state)
            problem, usable = f"{last}: has no {', '.join(missing)}", True
            if not missing and has_diverged(checkpoint):
                problem, usable = f"{last}: its validation loss is {checkpoint['extra_state']['val_loss']}", False
        except SharingError as error:
            problem = str(error)
    if newest is not None:
        return newest, problem
    if last.exists() and not usable:
        raise SharingError(f"{problem}; {cfg.save_dir} has no other checkpoint to resume from")
    return None
