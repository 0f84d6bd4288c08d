"""A command that is killed at any time loses nothing, leaves no partial file under its name, and can be run again.

``pytest -m slow -s tests/integration/test_kill_commands.py`` kills each command 20 times and prints the moments.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fairseq_processes import PLUGIN, fork_generation
from tiny_training import CYCLE_REV, TRAINING

PAUSE = 0.02  # seconds at each flush and rename, so that kills happen during writes too
KILLS = [3, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
WORDS = ["--source-lang", "en", "--target-lang", "de", "--subword-size", "40", "--workers", "1"]


def slow_writes() -> None:
    """Pause at each step of writing a file in this process, and translate in a fork of it."""
    stock_fsync, stock_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        time.sleep(PAUSE)
        stock_fsync(descriptor)

    def replace(source: str, target: str) -> None:
        time.sleep(PAUSE)
        stock_replace(source, target)

    os.fsync, os.replace = fsync, replace
    fork_generation()


@pytest.fixture(scope="module")
def prepared(corpus, tmp_path_factory, commands) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "data"
    commands.run("fairseq_sharing", *_prepare(corpus, folder))
    return folder


def _prepare(corpus: Path, out: Path) -> list[object]:
    texts = ["--train", corpus / "train", "--valid", corpus / "valid", "--test", f"five={corpus / 'test1'}"]
    return ["prepare", "files", *texts, *WORDS, "--out", out]


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory, commands) -> Path:
    """A run directory with the checkpoints of two epochs."""
    folder = tmp_path_factory.mktemp("run") / "cycle_rev-seed1"
    words = [prepared / "bin", "--user-dir", PLUGIN, *CYCLE_REV, *TRAINING, "--save-dir", folder / "checkpoints"]
    commands.run("fairseq_cli.train", *words, "--max-epoch", "2")
    config = {"run": "cycle_rev", "dataset": "tiny", "seed": 1, "train": {"task": "translation"}}
    (folder / "config.yaml").write_text(json.dumps({**config, "evaluate": {"average_last": 2, "beam": 2}}))
    record = {"data": str(prepared), "exit_status": 0, "finished": "now", "train_seconds": 1.0}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def contents(path: Path) -> dict[str, bytes]:
    """Return the content of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def kill_at_moments(
    commands, words: Callable[[Path], list[object]], folder: Path, kills: int, whole: Callable[[Path], object]
) -> None:
    """Kill a command at random moments, and compare what it wrote with an undisturbed run.

    Args:
        words: the command that writes to a path.
        folder: a folder for the outputs.
        kills: number of kills.
        whole: returns the content of an output; None if there is no output.
    """
    moments = random.Random(str(words(Path())[0]))
    began = time.monotonic()
    commands.run("fairseq_sharing", *words(folder / "undisturbed"), before=slow_writes)
    duration, expected = time.monotonic() - began, whole(folder / "undisturbed")
    assert expected
    output = folder / "killed" / "output"
    output.parent.mkdir()
    alive = 0
    for kill in range(kills):
        command, moment = commands.start("fairseq_sharing", *words(output), before=slow_writes), moments.random()
        moment *= duration
        time.sleep(moment)
        if running := command.process.is_alive():
            command.process.kill()
        command.process.join()
        assert command.process.exitcode in (-signal.SIGKILL, 0), command.stderr
        alive += running
        assert whole(output) in (None, expected), f"kill {kill} at {moment:.2f} s"
        state = "running" if running else "finished"
        done = "complete" if whole(output) else "absent"
        if whole(output):  # the next kill is during a first run again, or while the file is replaced
            _start_again(output, keep=kill % 2 == 1)
        print(f"{words(Path())[0]}: kill {kill} at {moment:.2f} of {duration:.2f} s, {state}; output {done}")
    assert alive, "no kill while the command was running"
    _age(output.parent)
    commands.run("fairseq_sharing", *words(output))
    assert whole(output) == expected
    assert not [path for path in output.parent.rglob("*") if path.name.endswith((".tmp", ".errors"))]


def _start_again(output: Path, keep: bool) -> None:
    if keep:
        return
    output.unlink() if output.is_file() else shutil.rmtree(output)


def _age(folder: Path) -> None:
    """Make temporary files older than the time in which a running process locks them."""
    for path in folder.rglob("*.tmp"):
        os.utime(path, (time.time() - 10, time.time() - 10))


def file_or_folder(output: Path) -> dict[str, bytes] | None:
    return contents(output) if output.exists() else None


@pytest.mark.parametrize("kills", KILLS)
def test_average(kills, commands, trained, tmp_path):
    inputs = [trained / "checkpoint1.pt", trained / "checkpoint2.pt"]
    kill_at_moments(commands, lambda out: ["average", *inputs, "--output", out], tmp_path, kills, file_or_folder)


@pytest.mark.parametrize("kills", KILLS)
@pytest.mark.parametrize("kind", [["--materialize"], ["--to", "ctranslate2"]], ids=" ".join)
def test_export(kills, kind, commands, trained, tmp_path):
    def whole(output: Path) -> dict[str, bytes] | None:
        """Return the content; the model card names the folder."""
        found = file_or_folder(output)
        if found and "README.md" in found:
            found["README.md"] = found["README.md"].replace(output.name.encode(), b"OUT")
        return found

    words = ["export", trained / "checkpoint2.pt", *kind, "--output"]
    kill_at_moments(commands, lambda out: [*words, out], tmp_path, kills, whole)


@pytest.mark.parametrize("kills", KILLS)
def test_translate(kills, commands, trained, corpus, tmp_path):
    words = ["translate", trained / "checkpoint2.pt", corpus / "test1.en", "--prepared", "--max-len-b", 9, "--out"]
    kill_at_moments(commands, lambda out: [*words, out], tmp_path, kills, file_or_folder)


@pytest.mark.parametrize("kills", KILLS)
def test_prepare(kills, commands, corpus, tmp_path):
    def whole(folder: Path) -> object:
        """Return the hashes of the manifest, which exists only if the folder is complete."""
        if not (folder / "manifest.json").is_file():
            return None
        hashes = json.loads((folder / "manifest.json").read_text())["files"]
        assert hashes.keys() <= contents(folder).keys()
        return hashes

    kill_at_moments(commands, lambda out: _prepare(corpus, out), tmp_path, kills, whole)


@pytest.mark.parametrize("kills", KILLS)
def test_evaluate(kills, commands, run, tmp_path):
    """A run of its own for each output, with the same checkpoints."""

    def words(out: Path) -> list[object]:
        if out != Path() and not out.exists():
            (out / "checkpoints").mkdir(parents=True)
            for file in [*run.glob("*.*"), *run.glob("checkpoints/checkpoint[12].pt")]:
                os.link(file, out / file.relative_to(run))
        return ["evaluate", out]

    def whole(out: Path) -> object:
        if not (out / "result.json").is_file():
            return None
        result = json.loads((out / "result.json").read_text())
        (kept,) = (out / "hypotheses").glob("five.*")
        return result["scores"], gzip.decompress(kept.read_bytes())

    kill_at_moments(commands, words, tmp_path, kills, whole)
