"""What worker processes do with a chunk of sentence pairs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from fairseq_sharing.preparation.clean import reason_to_remove
from fairseq_sharing.preparation.text import Pipeline

MAX_SUBWORDS = 1023
"""Subwords that fairseq's Transformers read in a sentence unless told otherwise: 1,024 positions, one for the end."""

Chunk = list[tuple[str, str]]
Transformed = tuple[tuple[str, str], Counter[str], int]
"""The text of both sides, counts, and the number of pairs that went in."""


def tokenize_chunk(settings: str, limits: Mapping[str, Any] | None, chunk: Chunk) -> Transformed:
    """Tokenise pairs and leave out those that are no good for training.

    Args:
        settings: arguments of text.Pipeline as JSON.
        limits: as for clean.reason_to_remove; None keeps every pair.
        chunk: raw sentence pairs.

    Returns:
        The tokenised texts; counts by reason of removal, and "kept_empty".
    """
    pipeline = _pipeline(settings, None)
    counts: Counter[str] = Counter()
    kept = []
    for source, target in chunk:
        pair = pipeline.tokenize(source, "source"), pipeline.tokenize(target, "target")
        reason = reason_to_remove(*pair, limits) if limits else None
        if reason:
            counts[reason] += 1
        else:
            counts["kept_empty"] += not all(pair)
            kept.append(pair)
    return _text(kept), counts, len(chunk)


def segment_chunk(settings: str, model: Path | None, chunk: Chunk) -> Transformed:
    """Cut tokenised pairs into subwords.

    Args:
        settings: arguments of text.Pipeline as JSON.
        model: the subword model.
        chunk: tokenised pairs.

    Returns:
        The segmented texts; counts of "tokens", and of pairs with an "over_long" side.
    """
    pipeline = _pipeline(settings, model)
    pairs = [(pipeline.segment(source), pipeline.segment(target)) for source, target in chunk]
    lengths = [(len(source.split()), len(target.split())) for source, target in pairs]
    over_long = sum(max(length) > MAX_SUBWORDS for length in lengths)
    return _text(pairs), Counter(tokens=sum(map(sum, lengths)), over_long=over_long), len(chunk)


@lru_cache(maxsize=2)
def _pipeline(settings: str, model: Path | None) -> Pipeline:
    return Pipeline(**json.loads(settings), model=model)


def _text(pairs: Chunk) -> tuple[str, str]:
    source, target = ("".join(f"{pair[side]}\n" for pair in pairs) for side in (0, 1))
    return source, target
