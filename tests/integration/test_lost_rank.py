"""Two ranks under torchrun: a lost rank, a lost torchrun, a SIGTERM; each time the next start goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from words_corpus import ENVIRONMENT, make_place

from fairseq_sharing.training.run_directory import RunDirectory

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs 2 CPU cores")


def processes_of(run: RunDirectory) -> dict[str, int]:
    """Find what runs for a run directory: ``torchrun`` and each rank by its number -> process id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            variables = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if str(run.checkpoints) in words and Path(f"/proc/{folder.name}/cwd").exists():
            rank = next((v.partition("=")[2] for v in variables if v.startswith("RANK=")), None)
            name = "torchrun" if "torch.distributed.run" in words else f"rank {rank}"
            found[name] = min(int(folder.name), found.get(name, int(folder.name)))  # not a rank's own workers
    return found


class Training:
    """The command with two ranks, in the background."""

    def __init__(self, place: Path, updates: int):
        words = ["train", "words.yaml", "--devices", "2", "run=lost", "train.save_interval_updates=2"]
        self.run = RunDirectory(Path("runs/words/lost-seed1"))
        self.place = place
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fairseq_sharing", *words, f"train.max_update={updates}"],
            cwd=place,
            env=ENVIRONMENT,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def saved(self) -> int:
        """Updates of the last checkpoint."""
        path = self.place / self.run.checkpoints / "checkpoint_last.pt"
        if not path.is_file():
            return 0
        return torch.load(path, weights_only=False)["optimizer_history"][-1]["num_updates"]

    def wait_for_update(self, more_than: int) -> None:
        end = time.monotonic() + 120
        while self.saved <= more_than:
            assert self.process.poll() is None, self.process.stderr.read()
            assert time.monotonic() < end, f"not more than {more_than} updates in two minutes"
            time.sleep(0.1)

    def end(self) -> str:
        return self.process.communicate(timeout=90)[1]


@pytest.mark.timeout(400)
def test_whatever_is_lost_the_next_start_goes_on(tmp_path):
    place = make_place(tmp_path)
    saved = 0
    for lost, number in (("rank 1", signal.SIGKILL), ("command", signal.SIGTERM), ("torchrun", signal.SIGKILL)):
        training = Training(place, 1_000_000)
        training.wait_for_update(saved)
        running = processes_of(training.run)
        assert set(running) == {"torchrun", "rank 0", "rank 1"}
        os.kill({**running, "command": training.process.pid}[lost], number)
        told = training.end()
        assert training.process.returncode == (143 if lost == "command" else 2), told
        if lost != "command":
            assert told.splitlines()[-1].startswith(
                "fairseq-sharing train: error: fairseq-train failed: ended by SIGKILL"
            )
        assert "Traceback" not in told
        end = time.monotonic() + 30  # a loader's worker looks after its rank every few seconds
        while left := processes_of(training.run):
            assert time.monotonic() < end, f"{lost} is gone, but {left} is still there"
            time.sleep(0.2)
        assert ("going on from its last checkpoint" in told) == (saved > 0)
        assert training.saved > saved
        saved = training.saved
    run = RunDirectory(place / training.run.path)
    logged = [record for kind, record in run.log_records() if kind == "train_inner"]
    assert {float(record["wpb"]) for record in logged} == {112}, "two ranks that trained apart would have 56"
    updates = [int(record["num_updates"]) for record in logged]
    begun = [update for update, before in zip(updates, [0, *updates], strict=False) if update != before + 1]
    assert len(begun) == 2, "each of the later starts goes on from a checkpoint, which may be a little older"
    assert all(update % 2 == 1 and update > 2 for update in begun), "every second update has a checkpoint"
