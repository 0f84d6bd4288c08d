"""Load an exported folder with transformers, and compare its log-probabilities with fairseq's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from fairseq_sharing.decoding.huggingface_config import Family
from fairseq_sharing.decoding.huggingface_library import MODELING, find_class, quiet
from fairseq_sharing.decoding.reference_scores import Difference, ReferenceScores
from fairseq_sharing.errors import SharingError

# Maximum difference of a log-probability. Rounding differs by less than 1e-5, a wrong operation by more than 0.1.
_TOLERANCE = 1e-4


def check(folder: Path, family: Family, keep_sharing: bool, reference: ReferenceScores) -> Difference:
    """Load a folder and compare it with fairseq.

    No code of the folder is executed: a model with shared weights has a class of this package, and the folder contains
    a copy of it.

    Args:
        folder: the exported model.
        family: its class.
        keep_sharing: whether shared weights are stored once.
        reference: fairseq's log-probabilities.

    Raises:
        SharingError: a weight is missing or unknown, or the log-probabilities differ.
    """
    with quiet():
        found = find_class(family.architecture(keep_sharing), MODELING if keep_sharing else None)
        model, report = found.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    wrong = {problem: sorted(map(str, names)) for problem, names in report.items() if names}
    if wrong:
        problem, names = next(iter(wrong.items()))
        raise SharingError(
            f"{reference.name}: {family.stock} does not have the weights of this model ({problem.replace('_', ' ')}: "
            f"{names[0]}); translate it with --engine fairseq"
        )
    difference = reference.difference(score(model.eval(), reference), "Hugging Face's model")
    if not difference.largest <= _TOLERANCE:
        raise SharingError(
            f"{reference.name}: the exported model's log-probabilities differ from fairseq's by "
            f"{difference.largest:.3g}; allowed: at most {_TOLERANCE}; the model uses an operation that {family.stock} "
            "lacks; translate it with --engine fairseq"
        )
    return difference


@torch.no_grad()
def score(model: Any, reference: ReferenceScores) -> torch.Tensor:
    """Compute the log-probabilities of the reference's targets, all sentences in one padded batch.

    Args:
        model: the model of Hugging Face, in evaluation mode.
        reference: the sentences.

    Returns:
        The log-probabilities in the order of the reference.
    """
    padding = model.config.pad_token_id
    inputs, targets = (
        pad_sequence(numbers, batch_first=True, padding_value=padding)
        for numbers in (reference.source_ids, reference.target_ids)
    )
    previous = pad_sequence([ids.roll(1) for ids in reference.target_ids], batch_first=True, padding_value=padding)
    # FSMT masks the future only without a cache.
    logits = model(
        input_ids=inputs, attention_mask=inputs.ne(padding).long(), decoder_input_ids=previous, use_cache=False
    ).logits
    scores = logits.log_softmax(-1).gather(2, targets[..., None])[..., 0]
    return torch.cat([row[: len(ids)] for row, ids in zip(scores, reference.target_ids, strict=True)])
