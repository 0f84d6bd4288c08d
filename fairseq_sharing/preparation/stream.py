"""Process texts of any length in worker processes, and resume stopped runs."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from fairseq_sharing.documents import Schema, is_count, is_text, list_of, mapping_of, read_json
from fairseq_sharing.files import atomic_write, write_text
from fairseq_sharing.preparation.parallel import Workers
from fairseq_sharing.preparation.progress import progress

CHUNK = 1000
"""Number of lines per chunk."""

SAVE_EVERY = 5.0
"""Maximum seconds of work that a stopped run loses."""

_JOURNAL: Schema = {
    "key": (is_text, "text"),
    "lines": (is_count, "a number"),
    "read": (list_of(is_count), "positions"),
    "written": (list_of(is_count), "sizes"),
    "crc32": (list_of(is_count), "checksums of the outputs"),
    "counts": (mapping_of(is_count), "numbers"),
    "sha256": (is_text, "the checksum of the other fields"),
}

Chunk = tuple[bytes, ...]
"""The same lines from each input."""

ChunkFunction = Callable[[Chunk], tuple[tuple[bytes, ...], Counter[str]]]
"""Converts a chunk to the bytes to append to each output, and counts."""


def process_chunks(
    title: str,
    inputs: list[Path],
    outputs: list[Path],
    function: ChunkFunction,
    pool: Workers,
    lines: int,
    key: str,
    size: int | None = None,
) -> Counter[str]:
    """Write outputs made from chunks of lines of parallel inputs, keeping the order.

    Only a few chunks are in memory at a time. Outputs are written to temporary files. Every few seconds they are
    flushed to disk, and their progress is recorded in a journal next to the first output. Outputs whose journal or
    finished part is damaged are restarted.

    Args:
        title: label of the progress bar.
        inputs: files with the same number of lines.
        outputs: files to write.
        function: picklable, called in worker processes.
        pool: the processes.
        lines: number of lines of each input.
        key: identifies inputs and settings; unfinished outputs with another key are restarted.
        size: number of lines per chunk; None for CHUNK.

    Returns:
        The sum of the counts.
    """
    journal = outputs[0].with_name(outputs[0].name + ".journal.tmp")
    parts = [output.with_name(output.name + ".tmp") for output in outputs]
    state = _read_journal(journal, parts, key, len(inputs))
    if state is None:
        nothing = [0] * len(outputs)
        state = {"key": key, "lines": 0, "read": [0] * len(inputs), "written": nothing, "crc32": nothing, "counts": {}}
    counts: Counter[str] = Counter(state["counts"])
    with contextlib.ExitStack() as stack:
        sources: list[IO[bytes]] = [stack.enter_context(path.open("rb")) for path in inputs]
        for source, position in zip(sources, state["read"], strict=True):
            source.seek(position)
        files = [stack.enter_context(_continue(*part)) for part in zip(parts, state["written"], strict=True)]
        advance = stack.enter_context(progress(title, lines, "lines", state["lines"]))
        sizes: deque[list[int]] = deque()
        saved = time.monotonic()
        for texts, chunk_counts in pool.map(function, _chunks(sources, sizes, size or CHUNK)):
            for file, text in zip(files, texts, strict=True):
                _write(file, text)
            state["crc32"] = [zlib.crc32(text, crc) for text, crc in zip(texts, state["crc32"], strict=True)]
            number, *read = sizes.popleft()
            counts.update(chunk_counts)
            advance(number)
            state["lines"] += number
            state["read"] = [before + size for before, size in zip(state["read"], read, strict=True)]
            if time.monotonic() - saved > SAVE_EVERY:
                state["written"] = [_sync(file) for file in files]
                _write_journal(journal, {**state, "counts": counts})
                saved = time.monotonic()
        for file in files:
            _sync(file)
    journal.unlink(missing_ok=True)
    for part, output in zip(parts, outputs, strict=True):
        part.replace(output)
    return counts


def split_every(text: Path, every: int, others: Path, chosen: Path) -> None:
    """Divide a text: every Nth line to one file, the others to another.

    Args:
        text: the text.
        every: N; the first chosen line is line N.
        others: file of the other lines.
        chosen: file of the chosen lines.
    """
    with text.open("rb") as file, atomic_write(others) as rest, atomic_write(chosen) as nth:
        for number, line in enumerate(file, start=1):
            (rest if number % every else nth).write(line)


def _chunks(sources: list[IO[bytes]], sizes: deque[list[int]], size: int) -> Iterator[Chunk]:
    """Read chunks; append the number of lines and the bytes per source of each chunk to ``sizes``."""
    while lines := [list(itertools.islice(source, size)) for source in sources]:
        if not lines[0]:
            return
        chunk = tuple(map(b"".join, lines))
        sizes.append([len(lines[0]), *map(len, chunk)])
        yield chunk


def _read_journal(journal: Path, parts: list[Path], key: str, inputs: int) -> dict[str, Any] | None:
    try:
        state = read_json(journal, _JOURNAL, "a journal", tuple(_JOURNAL))
        checksum = state.pop("sha256")
        if (state["key"], _checksum(state), len(state["read"])) == (key, checksum, inputs) and [
            _size_and_crc32(*part) for part in zip(parts, state["written"], strict=True)
        ] == list(zip(state["written"], state["crc32"], strict=True)):
            return state
    except (OSError, ValueError):
        pass  # The journal is damaged or its files are missing: restart the outputs.
    return None


def _write_journal(journal: Path, state: dict[str, Any]) -> None:
    write_text(journal, json.dumps({**state, "sha256": _checksum(state)}))


def _checksum(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _size_and_crc32(part: Path, size: int) -> tuple[int, int]:
    """Return the size and the CRC-32 of a file's first bytes."""
    found = crc = 0
    with part.open("rb") as file:
        while block := file.read(min(size - found, 1 << 20)):
            found, crc = found + len(block), zlib.crc32(block, crc)
    return found, crc


@contextlib.contextmanager
def _continue(part: Path, size: int) -> Iterator[IO[bytes]]:
    """Truncate a file to a size and open it for appending."""
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("r+b" if size else "wb") as file:
        file.truncate(size)
        file.seek(size)
        yield file


def _write(file: IO[bytes], text: bytes = b"") -> None:
    try:
        file.write(text)
        if not text:
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:  # does not name the file
        raise OSError(error.errno, error.strerror, file.name) from None


def _sync(file: IO[bytes]) -> int:
    """Flush a file to disk and return its size."""
    _write(file)
    return file.tell()
