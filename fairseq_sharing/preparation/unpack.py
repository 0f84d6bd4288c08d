"""Copy parallel texts to the data directory and check every line."""

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
    """Concatenate corpora of parallel texts, with line feeds as the only line endings.

    A byte order mark and carriage returns at the end of a line are removed; a carriage return inside a line becomes a
    space. Everything else is kept, so that translations are scored against the published text.

    Args:
        name: name of the split, for messages.
        corpora: the texts of each corpus, one per side.
        outputs: output files, one per side.
        expected: expected number of lines of each corpus; None if unknown.

    Returns:
        "lines", and the number of irregular characters of each kind.

    Raises:
        SharingError: invalid text (the message names file and line), or a wrong or unequal number of lines.
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
                    raise SharingError(f"{text}: empty; allowed: at least one line")
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
