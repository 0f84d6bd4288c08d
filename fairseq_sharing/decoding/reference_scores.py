"""fairseq's log-probabilities of random sentences, with which an exported model is compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fairseq_sharing.errors import SharingError

_LENGTHS = (1, 2, 3, 5, 8, 13, 21)  # of the sentences, in subwords without the end of the sentence


@dataclass(frozen=True)
class Difference:
    """Difference between an exported model's log-probabilities (natural) and fairseq's, over random sentences.

    Attributes:
        largest: the largest absolute difference.
        mean: the mean absolute difference.
    """

    largest: float
    mean: float


@dataclass(frozen=True)
class ReferenceScores:
    """fairseq's log-probabilities of the subwords of random sentences, including the ends of the sentences.

    Attributes:
        name: name of the model in error messages.
        sources: subwords of each source, without the end of the sentence.
        targets: subwords of each target, without the end of the sentence.
        source_ids: numbers of the subwords of each source, with the end of the sentence.
        target_ids: the same for the targets.
        scores: log-probability of each target subword and of the ends of the sentences, one sentence after the other.
    """

    name: str
    sources: list[list[str]]
    targets: list[list[str]]
    source_ids: list[torch.Tensor]
    target_ids: list[torch.Tensor]
    scores: torch.Tensor

    @classmethod
    def of(cls, model: Any, task: Any, name: str) -> ReferenceScores:
        """Draw random sentences and score each of them with fairseq's model.

        Args:
            model: fairseq's model, in evaluation mode.
            task: the task with its dictionaries.
            name: name of the model in error messages.

        Raises:
            SharingError: a log-probability is NaN or infinite.
        """
        draw = np.random.default_rng(1)
        sources, targets, source_ids, target_ids, scores = [], [], [], [], []
        for length in _LENGTHS:
            sources.append(_draw(draw, task.source_dictionary, length))
            targets.append(_draw(draw, task.target_dictionary, length))
            source_ids.append(_numbers(task.source_dictionary, sources[-1]))
            target_ids.append(ids := _numbers(task.target_dictionary, targets[-1]))
            inputs = source_ids[-1][None]
            output = model(inputs, torch.tensor([inputs.shape[1]]), ids.roll(1)[None])
            scores.append(model.get_normalized_probs(output, log_probs=True)[0].gather(1, ids[:, None])[:, 0])
        return cls(name, sources, targets, source_ids, target_ids, _finite(torch.cat(scores), f"{name}: fairseq"))

    def difference(self, scores: torch.Tensor, engine: str) -> Difference:
        """Compare another engine's log-probabilities with fairseq's.

        Args:
            scores: in the order of ``self.scores``.
            engine: name of the engine in error messages.

        Raises:
            SharingError: a log-probability is NaN or infinite.
        """
        difference = (self.scores - _finite(scores, f"{self.name}: {engine}")).abs()
        return Difference(float(difference.max()), float(difference.mean()))


def _finite(scores: torch.Tensor, engine: str) -> torch.Tensor:
    if not scores.isfinite().all():
        raise SharingError(f"{engine} computes log-probabilities that are NaN or infinite; allowed: finite values")
    return scores


def _draw(draw: np.random.Generator, dictionary: Any, length: int) -> list[str]:
    return [dictionary[int(index)] for index in draw.integers(dictionary.nspecial, len(dictionary), length)]


def _numbers(dictionary: Any, words: list[str]) -> torch.Tensor:
    return dictionary.encode_line(" ".join(words), line_tokenizer=str.split, add_if_not_exist=False).long()
