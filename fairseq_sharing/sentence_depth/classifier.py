"""The classifier that chooses the depth of a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fairseq_sharing.depths.settings import Setting
from fairseq_sharing.sentence_depth.costs import Costs


def layers_of(setting: Setting) -> int:
    """Return the number of layers that run at a setting, in all stacks."""
    return sum(setting.values())


@dataclass(frozen=True)
class DepthClassifier:
    """A softmax over the settings of a model: q(n | x) = softmax(W m + b), with the mean m of the encoder's states.

    The states are those of the encoder at its smallest depth, so they do not depend on the choice.

    Attributes:
        settings: the depths to choose from, in ascending number of layers.
        weight: W, one row per setting (float64).
        bias: b (float64).
        costs: what the depths cost.
        training: how it was trained: target, penalty, subset, sentences.

    Source: Elbayad et al. 2020, "Depth-Adaptive Transformer", sequence-specific depth.
    """

    settings: tuple[dict[str, int], ...]
    weight: Tensor
    bias: Tensor
    costs: Costs
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def encoder_depth(self) -> int:
        """The depth of the encoder whose states are classified."""
        return min(setting["encoder"] for setting in self.settings)

    def choose(self, means: Tensor) -> list[int]:
        """Choose the most probable setting of each sentence, of equals the one with the fewest layers.

        Args:
            means: the mean state of the encoder for each sentence (sentences x width).

        Returns:
            Indices of settings.
        """
        return first_best(means.double() @ self.weight.T + self.bias)

    def per_sentence(self, chosen: Sequence[int], lengths: Sequence[int]) -> float:
        """Return the mean MACs per sentence, including those of the choice. See ``Costs.per_sentence``."""
        return self.costs.per_sentence(chosen, lengths, self.weight.numel())


def first_best(scores: Tensor) -> list[int]:
    """Return the first index of the largest value of each row."""
    return (scores == scores.amax(1, keepdim=True)).int().argmax(1).tolist()
