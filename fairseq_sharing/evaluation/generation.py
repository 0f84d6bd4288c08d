"""Translate a binarized test set with ``fairseq-generate`` and read its output."""

from __future__ import annotations

import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.environment import torch_threads
from fairseq_sharing.files import atomic_write
from fairseq_sharing.resources import PACKAGE_DIR
from fairseq_sharing.terminal import say


def generate(arguments: Sequence[str], output: Path, segments: int, title: str, console: Console) -> list[str]:
    """Run ``fairseq-generate`` with this package loaded and keep its output.

    Args:
        arguments: the words after ``fairseq-generate``, without ``--user-dir``.
        output: file for the complete output.
        segments: number of sentences of the test set.
        title: label of the progress bar.
        console: prints the command and the progress.

    Returns:
        The best hypothesis of each sentence as fairseq wrote it (tokenized subwords), in the order of the test set.

    Raises:
        SharingError: fairseq-generate failed, or omitted or repeated a sentence.
    """
    words = [*arguments, "--user-dir", str(PACKAGE_DIR), "--no-progress-bar"]
    shown = shlex.join(["fairseq-generate", *words])
    say(console, f"$ {shown}", "dim")
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch_threads()), "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}
    # -P: like fairseq-generate itself, do not import modules from the current directory.
    command = [sys.executable, "-P", "-m", "fairseq_cli.generate", *words]
    errors = output.with_name(output.name + ".errors")
    with atomic_write(output) as copy:
        with (
            errors.open("wb") as stderr,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env=environment) as process,
            sentence_progress(title, segments, console) as advance,
        ):
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    copy.write(line)
                    if line.startswith(b"H-"):
                        advance(1)
            except BaseException:
                process.terminate()
                raise
        if process.returncode:
            reason = _too_long(_last_line(errors)) or _last_line(errors)
            raise SharingError(f"fairseq-generate failed on {title}: {reason}; full output: {errors}")
        copy.flush()
        hypotheses = read_generated(Path(copy.name), segments, f"fairseq-generate on {title}")
    errors.unlink()
    return hypotheses


@contextmanager
def sentence_progress(title: str, segments: int, console: Console) -> Iterator[Callable[[int], None]]:
    """Show the progress of the translation of a test set; yields a function that counts translated sentences."""
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("sentences"),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        bar = progress.add_task(title, total=segments)
        yield lambda count: progress.advance(bar, count)


def format_generated(hypotheses: Iterable[tuple[str, float]]) -> str:
    """Write hypotheses like fairseq-generate.

    Args:
        hypotheses: subwords, and log-probability (natural logarithm) after the length penalty.
    """
    return "".join(f"H-{number}\t{score / math.log(2)}\t{text}\n" for number, (text, score) in enumerate(hypotheses))


def read_generated(path: Path, segments: int, name: str = "") -> list[str]:
    """Read the hypotheses from a file written by `generate`.

    Args:
        path: the output of fairseq-generate.
        segments: number of sentences of the test set.
        name: name of the output in error messages; its path if empty.

    Returns:
        The hypotheses, sorted by sentence id.

    Raises:
        SharingError: the file is not UTF-8, or its ids are not 0 .. segments - 1, each exactly once.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise SharingError(f"{name or path}: not UTF-8 at byte {error.start}") from error
    return parse_generated(text.split("\n"), segments, name or str(path))


def parse_generated(lines: Iterable[str], segments: int, name: str) -> list[str]:
    """Extract the hypotheses from the output of fairseq-generate: ``H-<id> TAB <score> TAB <tokens>``.

    Args:
        lines: its output, without line endings.
        segments: number of sentences of the test set.
        name: name of the output in error messages.

    Returns:
        The hypotheses, sorted by sentence id; a hypothesis may be empty or contain tabs.

    Raises:
        SharingError: the ids are not 0 .. segments - 1, each exactly once, or a score is not a finite number.
    """
    hypotheses: dict[int, str] = {}
    for line in lines:
        if not line.startswith("H-"):
            continue
        head, *rest = line.split("\t", 2)
        if len(rest) != 2 or not head[2:].isdecimal():
            raise SharingError(
                f"{name}: {line[:60]!r} is not a hypothesis; allowed: H-<id>, score and text, separated by tabs"
            )
        sentence = int(head[2:])
        if not _is_finite(rest[0]):
            raise SharingError(f"{name}: sentence {sentence} has the score {rest[0]}; allowed: finite numbers")
        if sentence in hypotheses:
            raise SharingError(f"{name}: sentence {sentence} is translated twice; allowed: one hypothesis per sentence")
        hypotheses[sentence] = rest[1]
    missing = [sentence for sentence in range(segments) if sentence not in hypotheses]
    if missing:
        raise SharingError(f"{name}: {len(missing)} of {segments} sentences are not translated: {_some(missing)}")
    beyond = sorted(sentence for sentence in hypotheses if sentence >= segments)
    if beyond:
        raise SharingError(
            f"{name}: ids beyond the {segments} sentences of the test set (0 to {segments - 1}): {_some(beyond)}"
        )
    return [hypotheses[sentence] for sentence in range(segments)]


def _is_finite(score: str) -> bool:
    try:
        return math.isfinite(float(score))
    except ValueError:
        return False


def _some(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:5])) + (", ..." if len(ids) > 5 else "")


def _too_long(line: str) -> str | None:
    """Explain fairseq's message about a sentence that is longer than the model's limit; None for other messages."""
    found = re.search(r"Size of sample #(\d+) is invalid \(=\((.+)\)\) since max_positions=\((\d+), (\d+)\)", line)
    if found is None:
        return None
    number, max_source, max_target = (int(found[group]) for group in (1, 3, 4))
    source, target = map(int, re.findall(r"\d+(?=\)?(?:,|$))", found[2]))  # numpy 2 prints np.int32(1101)
    return (
        f"line {number + 1} has {source:,} source and {target:,} target subwords with the end of sentence; "
        f"allowed: at most {max_source:,} and {max_target:,}, the run's train.max_source_positions and "
        "train.max_target_positions"
    )


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if line.strip()]
    return lines[-1].strip() if lines else "no message"
