"""Copy parallel texts to where the rest works on them, checked line by line."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from fairseq_sharing.errors import SharingError
from fairseq_sharing.preparation.files import atomic_write, read_lines
from fairseq_sharing.preparation.progress import progress
from fairseq_sharing.preparation.text import LINE_BREAKS


def unpack(name: str, sources: list[Path], outputs: list[Path], expected: int | None) -> dict[str, int]:
    """Copy both sides of a parallel text, with line feeds as the only line ends.

    A byte order mark and carriage returns at line ends go; a carriage return inside a line becomes a space.
    Everything else stays, so that translations are scored against the text as it was published.

    Args:
        name: name of the split, for messages.
        sources: the two texts, gzip-compressed or not.
        outputs: where to.
        expected: number of lines each must have; None when unknown.

    Returns:
        "lines", and how often each kind of irregular character was found.

    Raises:
        SharingError: for bad text, naming file and line, and for texts of the wrong or of unequal length.
    """
    counts: Counter[str] = Counter()
    lines = [_copy(source, output, expected, counts) for source, output in zip(sources, outputs, strict=True)]
    for source, number in zip(sources, lines, strict=True):
        if expected is not None and number != expected:
            raise SharingError(f"{source}: {number:,} lines, expected {expected:,}")
        if number == 0:
            raise SharingError(f"{source}: empty")
    if lines[0] != lines[1]:
        raise SharingError(
            f"{name}: the two sides differ in length: {sources[0]} has {lines[0]:,} lines, "
            f"{sources[1]} has {lines[1]:,}"
        )
    return {"lines": lines[0], **counts}


def _copy(source: Path, output: Path, expected: int | None, counts: Counter[str]) -> int:
    number = 0
    with atomic_write(output) as file, progress(f"read {source.name}", expected) as advance:
        for number, line in enumerate(read_lines(source), start=1):
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
