"""Make fairseq's binary files with fairseq-preprocess, and count what came out."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

from fairseq_sharing.errors import SharingError
from fairseq_sharing.preparation.progress import console, progress

_INDEX_MAGIC = b"MMIDIDX\x00\x00"
_SMALL_DICTIONARY = 65_500  # symbols up to which fairseq stores two bytes a token, else four


def preprocess_arguments(source_lang: str, target_lang: str, tests: list[str]) -> list[str]:
    """Compose the arguments of fairseq-preprocess, with paths relative to the data directory.

    Args:
        source_lang: language code translated from.
        target_lang: language code translated to.
        tests: names of the test sets, which become the subsets test, test1, test2, ...

    Returns:
        The arguments.
    """
    arguments = ["--source-lang", source_lang, "--target-lang", target_lang, "--joined-dictionary"]
    arguments += ["--trainpref", "bpe/train", "--validpref", "bpe/valid"]
    if tests:
        arguments += ["--testpref", ",".join(f"bpe/{name}" for name in tests)]
    return [*arguments, "--destdir", "bin"]


def subset_names(tests: list[str]) -> dict[str, str]:
    """Name the subsets that fairseq makes of the test sets.

    Args:
        tests: names of the test sets in order.

    Returns:
        fairseq's subset by test set: test, test1, test2, ...
    """
    return {name: f"test{number or ''}" for number, name in enumerate(tests)}


def binarise(
    directory: Path,
    source_lang: str,
    target_lang: str,
    lines: dict[str, int],
    tokens: int,
    workers: int,
) -> dict[str, int]:
    """Run fairseq-preprocess on ``bpe/`` and put its output at ``bin/``.

    Args:
        directory: the data directory.
        source_lang: language code translated from.
        target_lang: language code translated to.
        lines: number of lines of each split; train, valid, then the test sets.
        tokens: subwords in all texts, for the progress display.
        workers: processes.

    Returns:
        ``{"dictionary": number of symbols}``, without fairseq's four special ones.

    Raises:
        SharingError: when fairseq-preprocess fails, or a binary file has another number of sentences than its text.
    """
    tests = [name for name in lines if name not in ("train", "valid")]
    arguments = [*preprocess_arguments(source_lang, target_lang, tests), "--workers", str(workers)]
    console.print("fairseq-preprocess " + shlex.join(arguments), soft_wrap=True, highlight=False)
    made, destination = directory / "bin.tmp", directory / "bin"
    shutil.rmtree(made, ignore_errors=True)
    arguments[arguments.index("bin")] = made.name
    log = directory / "preprocess.log"
    with log.open("wb") as output:
        # In the directory, because fairseq-preprocess splits its paths at commas.
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fairseq_cli.preprocess", *arguments],
            cwd=directory,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            _show_progress(process, made, tokens + 2 * sum(lines.values()))
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        last = (log.read_text(encoding="utf-8", errors="replace").strip().split("\n") or [""])[-1]
        raise SharingError(f"fairseq-preprocess failed with exit status {process.returncode}: {last} ({log})")
    subsets = {"train": "train", "valid": "valid", **subset_names(tests)}
    for name, subset in subsets.items():
        for lang in (source_lang, target_lang):
            found = count_sentences(made / f"{subset}.{source_lang}-{target_lang}.{lang}.idx")
            if found != lines[name]:
                raise SharingError(
                    f"fairseq-preprocess made {found:,} sentences of {name}.{lang}, which has {lines[name]:,} lines"
                )
    (made / "preprocess.log").unlink(missing_ok=True)
    log.unlink()
    shutil.rmtree(destination, ignore_errors=True)
    made.rename(destination)
    return {"dictionary": (destination / f"dict.{source_lang}.txt").read_bytes().count(b"\n")}


def count_sentences(index: Path) -> int:
    """Read the number of sentences from an index file of fairseq's mmap format.

    Args:
        index: a ``.idx`` file.

    Returns:
        Number of sentences.

    Raises:
        SharingError: when the file is of another format.
    """
    with index.open("rb") as file:
        header = file.read(len(_INDEX_MAGIC) + 8 + 1 + 8)  # magic, version, type of a token, count
    if not header.startswith(_INDEX_MAGIC):
        raise SharingError(f"{index}: not an index file of fairseq's mmap format")
    return struct.unpack("<Q", header[-8:])[0]


def _show_progress(process: subprocess.Popen[bytes], made: Path, tokens: int) -> None:
    """Follow the size of the binary files; they grow from when the dictionary, the first of the files, is there."""
    with progress("binarise", tokens, "tokens") as advance:
        shown = 0
        while process.poll() is None:
            time.sleep(0.2)
            dictionary = next(made.glob("dict.*.txt"), None)
            if dictionary is None:
                continue
            size = 2 if dictionary.read_bytes().count(b"\n") < _SMALL_DICTIONARY else 4
            with contextlib.suppress(FileNotFoundError):  # of a worker, merged meanwhile
                written = sum(file.stat().st_size for file in made.glob("*.bin")) // size
                advance(max(0, min(written, tokens) - shown))
                shown = max(shown, min(written, tokens))
        advance(tokens - shown if process.returncode == 0 else 0)
