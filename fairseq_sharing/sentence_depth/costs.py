"""MACs per sentence of a model whose depth differs between sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Cost = tuple[float, float]  # MACs of a sentence of n tokens: the first times n, plus the second times n squared


@dataclass(frozen=True)
class Costs:
    """MACs of a forward pass over a sentence pair with equal numbers of source and target tokens.

    Attributes:
        encoder: the cost of the encoder's pass for the classifier.
        settings: the cost of the model at each setting.
    """

    encoder: Cost
    settings: tuple[Cost, ...]

    def per_sentence(self, chosen: Sequence[int], lengths: Sequence[int], classifier: int) -> float:
        """Return the mean MACs per sentence, including the choice of the depth.

        Args:
            chosen: the index of the setting of each sentence.
            lengths: the source tokens of each sentence, with the end of the sentence.
            classifier: MACs of the classifier's matrix product.
        """
        macs = [_at(self.settings[index], n) + _at(self.encoder, n) for index, n in zip(chosen, lengths, strict=True)]
        return classifier + sum(macs) / len(macs)

    def at_one_depth(self, index: int, lengths: Sequence[int]) -> float:
        """Return the mean MACs per sentence if all sentences run at one setting, without a classifier."""
        return sum(_at(self.settings[index], length) for length in lengths) / len(lengths)


def _at(cost: Cost, length: int) -> float:
    linear, quadratic = cost
    return linear * length + quadratic * length**2
