"""Two ranks under torchrun: a lost rank, a SIGTERM, a lost machine; the next start resumes each time."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from fairseq_processes import ROOT
from tiny_training import free_port
from words_corpus import make_place

from fairseq_sharing.checkpoints.files import load_checkpoint
from fairseq_sharing.experiment.run_directory import RunDirectory

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs 2 CPU cores")


def processes_of(run: RunDirectory) -> dict[str, int]:
    """Map the processes of a run directory (torchrun of ``machine 0`` etc., ``rank 0`` etc.) to process ids."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            variables = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if str(run.checkpoints) in words and Path(f"/proc/{folder.name}/cwd").exists():
            rank = next((v.partition("=")[2] for v in variables if v.startswith("RANK=")), None)
            node = words[words.index("--node-rank") + 1] if "--node-rank" in words else ""
            name = f"machine {node}" if "torch.distributed.run" in words else f"rank {rank}"
            found[name] = min(int(folder.name), found.get(name, int(folder.name)))  # not the workers of a rank
    return found


def set_path() -> None:
    """Let the programs that this process starts import the package."""
    os.environ["PYTHONPATH"] = str(ROOT)


class Training:
    """The command with two ranks in the background, on one machine or on two simulated machines."""

    def __init__(self, commands, place: Path, nodes: int):
        words = ["train", "words.yaml", "run=lost", "train.save_interval_updates=2", "train.max_update=1000000"]
        self.run = RunDirectory(Path("runs/words/lost-seed1"))
        self.place = place
        starts = [["--devices", "2"]]
        if nodes == 2:
            here = f"127.0.0.1:{free_port()}"
            starts = [["--devices", "1", "--nodes", "2", "--node-rank", n, "--master", here] for n in "01"]
        # These are forks; torchrun and its ranks are separate programs.
        self.commands = [
            commands.start("fairseq_sharing", *words, *more, cwd=place, before=set_path) for more in starts
        ]

    @property
    def saved(self) -> int:
        """The number of updates of the last checkpoint."""
        path = self.place / self.run.checkpoints / "checkpoint_last.pt"
        if not path.is_file():
            return 0
        return load_checkpoint(path)["optimizer_history"][-1]["num_updates"]

    def wait_for_update(self, more_than: int) -> None:
        end = time.monotonic() + 180
        while self.saved <= more_than:
            assert self.commands[0].process.is_alive(), self.commands[0].stderr
            assert time.monotonic() < end, f"not more than {more_than} updates in three minutes"
            time.sleep(0.5)

    def end(self, status: int) -> str:
        """Wait for all commands; return the stderr of the first, which must have this exit status."""
        for command in self.commands:
            command.process.join(120)
        return self.commands[0].wait(status, patience=0).stderr


LOSSES = [
    ("rank 1", signal.SIGKILL, "fairseq-train failed: killed by SIGKILL"),
    ("command", signal.SIGTERM, None),
    ("machine 1", signal.SIGKILL, "fairseq-train failed: "),
]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("losses", [LOSSES[:2], pytest.param(LOSSES, marks=pytest.mark.slow)], ids=["two", "all"])
def test_the_next_start_resumes_after_any_loss(losses, tmp_path, commands):
    place = make_place(tmp_path, commands)
    saved = 0
    for lost, number, error in losses:
        training = Training(commands, place, nodes=2 if lost == "machine 1" else 1)
        training.wait_for_update(saved)
        running = processes_of(training.run)
        assert {"rank 0", "rank 1"} <= set(running)
        os.kill({**running, "command": training.commands[0].process.pid}[lost], number)
        told = training.end(143 if lost == "command" else 2)
        if error:
            assert told.splitlines()[-1].startswith(f"fairseq-sharing train: error: {error}")
        assert "Traceback" not in told
        end = time.monotonic() + 30  # a data loader worker checks its rank every few seconds
        while left := processes_of(training.run):
            assert time.monotonic() < end, f"{lost} is gone, but {left} is still there"
            time.sleep(0.5)
        assert ("resuming from its last checkpoint" in told) == (saved > 0)
        assert training.saved > saved
        saved = training.saved
    run = RunDirectory(place / training.run.path)
    logged = [record for kind, record in run.log_records() if kind == "train_inner"]
    assert {float(record["wpb"]) for record in logged} == {112}, "two ranks that train independently would have 56"
    updates = [int(record["num_updates"]) for record in logged]
    begun = [update for update, before in zip(updates, [0, *updates], strict=False) if update != before + 1]
    assert updates.count(1) == 1, "no later start restarted from the beginning"
    assert all(update % 2 == 1 for update in begun), "every second update has a checkpoint to resume from"
