"""Load trained models and their task for evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairseq_sharing.errors import SharingError


def load_ensemble(
    checkpoints: Sequence[Path], data: Path, languages: Mapping[str, str], name: object
) -> tuple[list[Any], Any, Any]:
    """Load the models of checkpoints and the task with their dictionaries.

    Args:
        checkpoints: the files.
        data: the folder of the dictionaries and of binarized text.
        languages: language code of each side ("source", "target").
        name: the model, for error messages.

    Returns:
        The models on the CPU, fairseq's task, and the configuration of the last checkpoint.

    Raises:
        SharingError: an option is refused, or the weights do not fit the model.
    """
    from fairseq import checkpoint_utils  # registers the models of this package

    from fairseq_sharing.fixes.error_messages import find_sharing_error

    overrides = {"data": str(data), **{f"{side}_lang": lang for side, lang in languages.items()}}
    try:
        models, cfg, task = checkpoint_utils.load_model_ensemble_and_task(
            [str(path) for path in checkpoints], arg_overrides=overrides
        )
    except Exception as error:
        cause = find_sharing_error(error)
        if cause is None:
            raise
        raise SharingError(f"{name}: {cause}") from error
    return models, cfg, task
