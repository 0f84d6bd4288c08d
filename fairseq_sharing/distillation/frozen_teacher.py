"""A frozen teacher that scores a student's batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fairseq.tasks.translation import TranslationTask
from torch import Tensor

from fairseq_sharing.decoding.fairseq_engine import load_models
from fairseq_sharing.decoding.model_files import find_model
from fairseq_sharing.errors import SharingError
from fairseq_sharing.terminal import Console


class FrozenTeacher:
    """A trained model in evaluation mode, whose parameters take no gradient.

    It is not a module, so the model's optimizer, data-parallel wrapper and checkpoints do not contain it.

    Args:
        checkpoint: the checkpoint.
        data: its prepared or binarized data, for its dictionaries; empty for the data that it was trained on.
        task: the student's task.

    Raises:
        SharingError: there is no such checkpoint, or its task, languages or dictionaries are not those of the student.
    """

    def __init__(self, checkpoint: str, data: str, task: Any):
        if not Path(checkpoint).is_file():
            raise SharingError(f"--teacher {checkpoint}: no such file; allowed: a checkpoint")
        if not isinstance(task, TranslationTask):
            raise SharingError(
                f"--teacher {checkpoint}: the student's task is {type(task).__name__}; allowed: translation, "
                "translation_sharing"
            )
        # The student's random numbers must not depend on the teacher.
        with torch.random.fork_rng(devices=[]):
            model, own = _load(checkpoint, data)
        _refuse_other_task(checkpoint, own, task)
        if getattr(model.decoder, "adaptive_softmax", None) is not None:
            raise SharingError(f"--teacher {checkpoint}: has an adaptive softmax; allowed: a full softmax")
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def scores(self, sample: dict[str, Any]) -> Tensor:
        """Return the scores (logits) of each target position of a batch: B x T x V, in fp32.

        Args:
            sample: a batch; the teacher moves to its device.
        """
        device = sample["target"].device
        if next(self.model.parameters()).device != device:
            self.model.to(device)
        with torch.autocast(device.type, enabled=False):
            return self.model(**sample["net_input"])[0].float()


def _load(checkpoint: str, data: str) -> tuple[Any, Any]:
    try:
        (model,), task, _ = load_models(find_model(checkpoint, Path(data) if data else None, Console(stderr=True)))
    except SharingError as error:
        # The messages name the flag of the commands that decode.
        raise SharingError(f"--teacher {checkpoint}: {str(error).replace('--data', '--teacher-data')}") from error
    return model, task


def _refuse_other_task(checkpoint: str, own: Any, task: Any) -> None:
    if not isinstance(own, TranslationTask):
        raise SharingError(f"--teacher {checkpoint}: its task is {type(own).__name__}; allowed: translation")
    languages = [(one.cfg.source_lang, one.cfg.target_lang) for one in (own, task)]
    if languages[0] != languages[1]:
        shown = ["-".join(pair) for pair in languages]
        raise SharingError(f"--teacher {checkpoint}: translates {shown[0]}; allowed: {shown[1]}, as the student")
    for side in ("source", "target"):
        symbols, wanted = (getattr(one, f"{side}_dictionary").symbols for one in (own, task))
        if symbols != wanted:
            raise SharingError(
                f"--teacher {checkpoint}: its {side} dictionary ({len(symbols):,} symbols) differs from the student's "
                f"({len(wanted):,}); allowed: a teacher trained on data with the same dictionaries"
            )
