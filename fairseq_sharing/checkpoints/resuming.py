"""Choose the checkpoint to resume from if ``checkpoint_last.pt`` is damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fairseq_sharing.checkpoints.choose import missing_parts, newest_readable
from fairseq_sharing.checkpoints.files import load_checkpoint
from fairseq_sharing.errors import SharingError

_OTHER_SOURCES = (
    "finetune_from_model",
    "continue_once",
    "reset_optimizer",
    "reset_lr_scheduler",
    "reset_meters",
    "reset_dataloader",
)


def find_fallback(cfg: Any, trainer: Any) -> tuple[Path, str] | None:
    """Find the checkpoint to resume from instead of ``checkpoint_last.pt``.

    As in fairseq, a missing ``checkpoint_last.pt`` starts a new training, unless its temporary file shows that the
    process was killed while writing it for the first time.

    Args:
        cfg: fairseq's checkpoint options.
        trainer: fairseq's trainer.

    Returns:
        The checkpoint with the most updates among those that fairseq wrote, and the problem with the last checkpoint.
        None to keep fairseq's choice: the last checkpoint is complete or missing, the options name another source of
        weights, or the model is not from this package.

    Raises:
        SharingError: the last checkpoint cannot be read, and there is no other checkpoint.
    """
    if cfg.restore_file != "checkpoint_last.pt" or any(getattr(cfg, name, None) for name in _OTHER_SOURCES):
        return None
    if not any(kind.__module__.startswith("fairseq_sharing.") for kind in type(trainer.get_model()).__mro__):
        return None
    suffix, optimizer_state = trainer.checkpoint_suffix, not cfg.no_save_optimizer_state
    last = Path(cfg.save_dir, f"checkpoint_last{suffix}.pt")
    if not last.exists() and not Path(f"{last}.tmp").exists():
        return None
    newest = newest_readable(cfg.save_dir, suffix, optimizer_state)
    if newest == last:
        return None
    problem, readable = f"{last}: was not written completely", False
    if last.exists():
        try:
            problem = f"{last}: has no {', '.join(missing_parts(load_checkpoint(last), optimizer_state))}"
            readable = True
        except SharingError as error:
            problem = str(error)
    if newest is not None:
        return newest, problem
    if last.exists() and not readable:
        raise SharingError(f"{problem}; {cfg.save_dir} has no other checkpoint to resume from")
    return None
