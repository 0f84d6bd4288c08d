"""Process chunks of lines in worker processes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy

from fairseq_sharing.files import read_lines
from fairseq_sharing.preparation.binarize import read_dictionary, token_type
from fairseq_sharing.preparation.clean import reason_to_remove
from fairseq_sharing.preparation.stream import Chunk
from fairseq_sharing.preparation.text import Pipeline

MAX_SUBWORDS = 1023
"""Default maximum length of a sentence in fairseq's Transformers: 1,024 positions, one of them for the end."""

Transformed = tuple[tuple[bytes, ...], Counter[str]]
"""The bytes to append to each output, and counts."""


def tokenize_chunk(
    settings: str, limits: Mapping[str, Any] | None, held_out: tuple[Path, ...], key: str, chunk: Chunk
) -> Transformed:
    """Tokenize pairs and remove those that fail the cleaning limits.

    Args:
        settings: arguments of text.Pipeline as JSON.
        limits: see `clean.reason_to_remove`; None keeps every pair.
        held_out: texts; pairs whose source is one of their lines are removed.
        key: changes whenever the held-out texts change.
        chunk: raw lines of each side.

    Returns:
        The tokenized texts; counts by reason of removal, including "held_out", and "kept_empty".
    """
    pipeline = _pipeline(settings, None, "")
    excluded = _lines(held_out, key)
    counts: Counter[str] = Counter()
    kept: list[list[str]] = []
    for raw in zip(*(_lines_of(text.decode()) for text in chunk), strict=True):
        texts = [pipeline.tokenize(line, side) for line, side in zip(raw, pipeline.languages, strict=True)]
        reason = reason_to_remove(texts, limits) if limits else None
        if reason is None and raw[0] in excluded:
            reason = "held_out"
        if reason:
            counts[reason] += 1
        else:
            counts["kept_empty"] += not all(texts)
            kept.append(texts)
    sides = zip(*kept, strict=True) if kept else [()] * len(chunk)
    return tuple("".join([f"{text}\n" for text in side]).encode() for side in sides), counts


def segment_chunk(settings: str, model: Path | None, key: str, chunk: Chunk) -> Transformed:
    """Split tokenized lines into subwords.

    Args:
        settings: arguments of text.Pipeline as JSON.
        model: the subword model.
        key: changes whenever the model changes.
        chunk: tokenized lines of each side.

    Returns:
        The segmented texts; counts of "tokens", and of pairs with a side that is too long ("over_long").
    """
    pipeline = _pipeline(settings, model, key)
    texts = [pipeline.segment(text.decode()) for text in chunk]
    lengths = [[line.count(" ") + bool(line) for line in _lines_of(text)] for text in texts]
    over_long = sum(max(pair) > MAX_SUBWORDS for pair in zip(*lengths, strict=True))
    counts = Counter(tokens=sum(map(sum, lengths)), over_long=over_long)
    return tuple(text.encode() for text in texts), counts


def number_chunk(dictionary: Path, key: str, chunk: Chunk) -> Transformed:
    """Convert subwords to dictionary indices.

    Args:
        dictionary: fairseq dictionary file.
        key: changes whenever the dictionary changes.
        chunk: segmented lines of one side.

    Returns:
        The indices of all tokens, with the end-of-sentence index after each line, and the length per line; no counts.
    """
    numbers = _dictionary(dictionary, key)
    unknown = numbers["<unk>"]
    text = chunk[0].decode()
    tokens = [numbers.get(word, unknown) for word in text.replace("\n", " </s> ").split()]
    lengths = [line.count(" ") + bool(line) + 1 for line in _lines_of(text)]
    data = numpy.array(tokens, token_type(len(numbers))), numpy.array(lengths, numpy.int32)
    return tuple(array.tobytes() for array in data), Counter()


# Each process caches these between chunks.


@lru_cache(maxsize=1)
def _pipeline(settings: str, model: Path | None, key: str) -> Pipeline:
    return Pipeline(**json.loads(settings), model=model)


@lru_cache(maxsize=1)
def _dictionary(path: Path, key: str) -> dict[str, int]:
    return read_dictionary(path)


@lru_cache(maxsize=1)
def _lines(paths: tuple[Path, ...], key: str) -> frozenset[str]:
    return frozenset(line for path in paths for line in read_lines(path))


def _lines_of(text: str) -> list[str]:
    return text.split("\n")[:-1]
