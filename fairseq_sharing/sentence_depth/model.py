"""Load a model whose depth can be chosen per sentence, and its data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq_sharing.errors import SharingError
from fairseq_sharing.models.loading import load_ensemble


def load_model(checkpoint: Path, data: Path, languages: Mapping[str, str]) -> tuple[Any, Any]:
    """Load a translation model that was trained at several depths.

    Args:
        checkpoint: the file.
        data: the folder of the binarized data.
        languages: language code of each side ("source", "target").

    Returns:
        The model in evaluation mode, and fairseq's task.

    Raises:
        SharingError: the model has one depth, or is not a translation model for one direction.
    """
    (model,), _, task = load_ensemble([checkpoint], data, languages, checkpoint)
    check_model(model, task, checkpoint)
    return model.eval(), task


def check_model(model: Any, task: Any, name: object) -> None:
    """Check that the depth of a model can be chosen per sentence.

    Args:
        model: the model.
        task: fairseq's task.
        name: the model, for error messages.

    Raises:
        SharingError: it cannot.
    """
    from fairseq.tasks.translation import TranslationTask

    if not isinstance(task, TranslationTask):
        task_name = getattr(task.cfg, "_name", None) or type(task).__name__
        raise SharingError(
            f"{name}: a depth per sentence: the task is {task_name}; allowed: translation in one direction"
        )
    if getattr(model, "depths", None) is None:
        raise SharingError(
            f"{name}: a depth per sentence: the model has one depth; allowed: models trained with --depths"
        )


def load_subset(task: Any, subset: str, data: Path) -> Any:
    """Load binarized sentence pairs.

    Raises:
        SharingError: there is no such subset.
    """
    try:
        task.load_dataset(subset)
    except FileNotFoundError:
        raise SharingError(f"--subset {subset}: {data} has no such subset; allowed: train, valid, test, ...") from None
    return task.dataset(subset)
