"""Select the training pairs to remove, like Moses' clean-corpus-n.perl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

REASONS = ("empty", "too_long", "length_ratio", "long_word")


def reason_to_remove(texts: Sequence[str], limits: Mapping[str, Any]) -> str | None:
    """Return why a pair, or a single sentence, is removed from the training data.

    Args:
        texts: tokens of each side, separated by single spaces.
        limits: min_tokens and max_tokens per side, max_ratio of the two lengths, max_word_length in characters.

    Returns:
        One of REASONS; None for a pair to keep.

    Source:
        mosesdecoder, scripts/training/clean-corpus-n.perl.
    """
    words = [text.split() for text in texts]
    lengths = sorted(map(len, words))
    shorter, longer = lengths[0], lengths[-1]
    if shorter < limits["min_tokens"]:
        return "empty"
    if longer > limits["max_tokens"]:
        return "too_long"
    if longer > limits["max_ratio"] * shorter:
        return "length_ratio"
    if max(len(word) for side in words for word in side) > limits["max_word_length"]:
        return "long_word"
    return None
