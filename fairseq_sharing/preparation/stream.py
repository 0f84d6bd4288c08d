"""Send texts of any length through worker processes, going on where a stopped run was."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from fairseq_sharing.files import atomic_write
from fairseq_sharing.preparation.parallel import Workers
from fairseq_sharing.preparation.progress import progress

CHUNK = 1000
"""Lines handed to a process at a time."""

SAVE_EVERY = 5.0
"""Seconds of work that a stopped run loses at most."""

Chunk = tuple[bytes, ...]
"""The same lines of each input."""

Transform = Callable[[Chunk], tuple[tuple[bytes, ...], Counter[str]]]
"""Makes of a chunk what is appended to each output, and counts."""


def transform(
    title: str, inputs: list[Path], outputs: list[Path], function: Transform, pool: Workers, lines: int, key: str
) -> Counter[str]:
    """Write outputs made from chunks of lines of parallel inputs, keeping the order.

    Memory holds a few chunks, however long the inputs are. Outputs grow under a temporary name; how far they are is
    noted beside the first one every few seconds, once what they hold is safely on disk.

    Args:
        title: what is being done, for the progress display.
        inputs: files with the same number of lines.
        outputs: files to write.
        function: picklable, called in worker processes.
        pool: the processes.
        lines: number of lines of each input.
        key: says what the outputs are made from and how; unfinished outputs with another key are begun anew.

    Returns:
        The sum of the counts.
    """
    journal = outputs[0].with_name(outputs[0].name + ".journal.tmp")
    parts = [output.with_name(output.name + ".tmp") for output in outputs]
    state = _read_journal(journal, parts, key)
    if state is None:
        state = {"key": key, "lines": 0, "read": [0] * len(inputs), "written": [0] * len(outputs), "counts": {}}
    counts: Counter[str] = Counter(state["counts"])
    with contextlib.ExitStack() as stack:
        sources: list[IO[bytes]] = [stack.enter_context(path.open("rb")) for path in inputs]
        for source, position in zip(sources, state["read"], strict=True):
            source.seek(position)
        files = [stack.enter_context(_continue(*part)) for part in zip(parts, state["written"], strict=True)]
        advance = stack.enter_context(progress(title, lines, "lines"))
        advance(state["lines"])
        sizes: deque[list[int]] = deque()
        saved = time.monotonic()
        for texts, chunk_counts in pool.map(function, _chunks(sources, sizes)):
            for file, text in zip(files, texts, strict=True):
                file.write(text)
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


def _chunks(sources: list[IO[bytes]], sizes: deque[list[int]]) -> Iterator[Chunk]:
    """Read chunks; note of each its number of lines and its bytes of each source."""
    while lines := [list(itertools.islice(source, CHUNK)) for source in sources]:
        if not lines[0]:
            return
        chunk = tuple(map(b"".join, lines))
        sizes.append([len(lines[0]), *map(len, chunk)])
        yield chunk


def _read_journal(journal: Path, parts: list[Path], key: str) -> dict[str, Any] | None:
    try:
        state = json.loads(journal.read_text(encoding="utf-8"))
        if state["key"] == key and all(p.stat().st_size >= n for p, n in zip(parts, state["written"], strict=True)):
            return state
    except (OSError, ValueError, KeyError, TypeError):
        pass  # The journal is damaged or its parts are gone: the outputs are begun anew.
    return None


def _write_journal(journal: Path, state: dict[str, Any]) -> None:
    with atomic_write(journal) as file:
        file.write(json.dumps(state).encode())


@contextlib.contextmanager
def _continue(part: Path, size: int) -> Iterator[IO[bytes]]:
    """Open a file to append to its first bytes."""
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("r+b" if size else "wb") as file:
        file.truncate(size)
        file.seek(size)
        yield file


def _sync(file: IO[bytes]) -> int:
    """Bring what is written to disk; tell how much it is."""
    file.flush()
    os.fsync(file.fileno())
    return file.tell()
