"""Copy parallel texts to where the rest works on them, checked line by line."""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path
from typing import IO

from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import atomic_write
from fairseq_sharing.preparation.progress import progress
from fairseq_sharing.preparation.sources import Text
from fairseq_sharing.preparation.text import LINE_BREAKS


def unpack(name: str, corpora: list[list[Text]], outputs: list[Path], expected: list[int | None]) -> dict[str, int]:
    """Copy both sides of parallel texts, one corpus after the other, with line feeds as the only line ends.

    A byte order mark and carriage returns at line ends go; a carriage return inside a line becomes a space.
    Everything else stays, so that translations are scored against the text as it was published.

    Args:
        name: name of the split, for messages.
        corpora: the texts, one a side.
        outputs: where to, one file a side.
        expected: number of lines that each corpus must have; None when unknown.

    Returns:
        "lines", and how often each kind of irregular character was found.

    Raises:
        SharingError: for bad text, naming file and line, and for texts of the wrong or of unequal length.
    """
    counts: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(atomic_write(output)) for output in outputs]
        for texts, number in zip(corpora, expected, strict=True):
            lines = [_copy(text, file, number, counts) for text, file in zip(texts, files, strict=True)]
            for text, found in zip(texts, lines, strict=True):
                if number is not None and found != number:
                    raise SharingError(f"{text}: {found:,} lines, expected {number:,}")
                if found == 0:
                    raise SharingError(f"{text}: empty")
                if found != lines[0]:
                    raise SharingError(
                        f"{name}: the two sides differ in length: {texts[0]} has {lines[0]:,} lines, "
                        f"{text} has {found:,}"
                    )
            counts["lines"] += lines[0]
    return dict(counts)


def _copy(text: Text, file: IO[bytes], expected: int | None, counts: Counter[str]) -> int:
    number = 0
    with progress(f"read {text.name}", expected) as advance:
        for number, line in enumerate(text.lines(), start=1):
            if number == 1 and line.startswith("\ufeff"):
                line = line[1:]
                counts["byte_order_marks"] += 1
            if line.endswith("\r"):
                line = line[:-1]
                counts["carriage_returns_at_line_end"] += 1
            if LINE_BREAKS.search(line):
                counts["lines_with_line_breaks_inside"] += 1
                line = line.replace("\r", " ")
            file.write(line.encode("utf-8") + b"\n")
            advance(1)
    return number
