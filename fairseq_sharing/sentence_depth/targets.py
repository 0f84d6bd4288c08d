"""The best depth of each sentence: the target of the classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fairseq_sharing.depths.settings import Setting
from fairseq_sharing.sentence_depth.classifier import first_best, layers_of


@torch.no_grad()
def sentence_scores(model: Any, settings: Sequence[Setting], sample: dict[str, Any], target: str) -> Tensor:
    """Score the reference translations of a batch at every depth.

    Args:
        model: a model in evaluation mode; afterwards it runs all layers.
        settings: the depths.
        sample: a batch with its targets.
        target: ``likelihood``, the log-probability of the reference (natural logarithm), or ``correctness``, the
            number of its tokens that are the most probable ones.

    Returns:
        Sentences x settings (float64), on the CPU.
    """
    words = sample["target"]
    keep = words.ne(model.decoder.padding_idx)
    likelihood = target == "likelihood"
    columns = []
    for setting in settings:
        model.use_depth(setting)
        scores = model.get_normalized_probs(model(**sample["net_input"]), log_probs=True)
        each = scores.gather(2, words.unsqueeze(2)).squeeze(2) if likelihood else scores.argmax(2).eq(words)
        columns.append(each.double().masked_fill(~keep, 0).sum(1).cpu())
    model.use_depth(None)
    return torch.stack(columns, 1)


def best_depths(scores: Tensor, settings: Sequence[Setting], penalty: float) -> list[int]:
    """Return the index of the best setting of each sentence: of the largest score minus penalty times layers.

    Args:
        scores: sentences x settings.
        settings: the depths, in ascending number of layers; of equally good ones, the first is the best.
        penalty: what one more layer must add to the score.

    Source: Elbayad et al. 2020, "Depth-Adaptive Transformer", the oracles of sequence-specific depth.
    """
    return first_best(scores - penalty * torch.tensor([layers_of(s) for s in settings], dtype=torch.float64))
