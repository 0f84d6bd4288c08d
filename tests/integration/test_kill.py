"""A training that is killed at any time resumes where it stopped, and no checkpoint is ever partially written."""

from __future__ import annotations

import io
import os
import random
import re
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_training import assert_same_bits, read_checkpoint

KILLS = 20
FLAGS = ["--dropout", "0.2", "--update-freq", "2", "--num-workers", "1"]
FLAGS += ["--save-interval-updates", "2", "--keep-interval-updates", "2", "--keep-last-epochs", "2"]
FLAGS += ["--max-update", "30"]  # more than KILLS restarts reach: about 12
STEPS = 10  # per checkpoint, which has three names
PAUSE = 0.03  # seconds at each step of a slowed write


def slow_writes(events: Path) -> None:
    """Slow down every step of writing a file in this process, and record each step with its file."""
    stock_save, stock_fsync, stock_replace = torch.save, os.fsync, os.replace

    def tell(step: str, path: object) -> None:
        with events.open("a") as file:
            file.write(f"{step} {os.path.basename(path)}\n")
        time.sleep(PAUSE)

    def save(obj, file):
        content = io.BytesIO()
        stock_save(obj, content)
        half = len(content.getvalue()) // 2
        file.write(content.getvalue()[:half])
        file.flush()
        tell("half", file.name)
        file.write(content.getvalue()[half:])

    def fsync(descriptor):
        tell("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
        stock_fsync(descriptor)

    def replace(source, target):
        stock_replace(source, target)
        tell("rename", target)

    torch.save, os.fsync, os.replace = save, fsync, replace


@pytest.mark.timeout(900)
def test_twenty_kills_leave_no_trace(tmp_path, commands, train_words, train):
    """The final weights and optimizer state are bitwise equal to those of an uninterrupted training."""
    train(tmp_path / "undisturbed", *FLAGS)
    killed, events = tmp_path / "killed", tmp_path / "events"
    words = train_words(killed, *FLAGS)
    moments, steps, halves = random.Random(1), [], 0

    def told() -> list[str]:
        return events.read_text().splitlines()

    for kill in range(KILLS):
        events.write_text("")
        training = commands.start("fairseq_cli.train", *words, before=partial(slow_writes, events))
        if kill % 4 == 0:  # during a write
            training.wait_until(lambda: told() and told()[-1].startswith("half"))
        elif kill % 4 == 1:  # while it starts, reads, trains or writes
            time.sleep(moments.uniform(0, 1.2))
        else:  # at and between the steps of three checkpoints
            number = moments.randint(1, 3 * STEPS)
            training.wait_until(lambda wanted=number: len(told()) >= wanted)
            time.sleep(moments.uniform(0, PAUSE))
        assert training.process.is_alive(), f"it ended before kill {kill}: {training.stdout}"
        training.kill()
        steps += told()
        halves += bool(told()) and told()[-1].startswith("half")
        for path in killed.glob("*.pt"):
            assert "last_optimizer_state" in read_checkpoint(path), f"kill {kill} broke {path}"
    assert halves > 2, "the test requires kills during a write"
    last = read_checkpoint(killed / "checkpoint_last.pt")
    assert last["optimizer_history"][-1]["num_updates"] > 8, "each restart resumes from the previous one"
    train(killed, *FLAGS)
    assert_same_bits(killed / "checkpoint_last.pt", tmp_path / "undisturbed" / "checkpoint_last.pt")

    assert_every_name_was_flushed_first(steps)


def send_signal(moment: int, number: int) -> None:
    """Send this process a signal in the middle of an update of the first epoch."""
    from fairseq.tasks.translation import TranslationTask

    stock, left = TranslationTask.train_step, [number]

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        if update_num == moment and left:
            left.clear()
            for _ in range(1 if number == signal.SIGINT else 2):
                os.kill(os.getpid(), number)
        return stock(self, sample, model, criterion, optimizer, update_num, ignore_grad)

    TranslationTask.train_step = train_step


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_terminated_training_saves_its_last_update(tmp_path, commands, train_words, train, number):
    """The update is finished and saved in the middle of the epoch; the resumed training is bitwise equal."""
    flags = ["--dropout", "0.2", "--update-freq", "2", "--max-update", "12"]
    train(tmp_path / "undisturbed", *flags)
    stopped = tmp_path / "stopped"
    training = commands.start(
        "fairseq_cli.train", *train_words(stopped, *flags), before=partial(send_signal, 3, number)
    )
    training.wait(status=128 + number)
    assert f"{number.name}: stopped after 4 updates" in training.stdout
    assert {path.name for path in stopped.iterdir()} == {"checkpoint_last.pt"}
    assert read_checkpoint(stopped / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"] == 4
    train(stopped, *flags)
    assert_same_bits(stopped / "checkpoint_last.pt", tmp_path / "undisturbed" / "checkpoint_last.pt")


def assert_every_name_was_flushed_first(steps: list[str]) -> None:
    """Each rename to NAME.pt follows a flush of its temporary file, NAME.pt.XXXXXXXX.tmp."""
    flushed: set[str] = set()
    renamed = 0
    for step in steps:
        what, name = step.split()
        if what == "fsync":
            flushed.add(re.sub(r"\.[0-9a-f]{8}\.tmp$", ".tmp", name))
        elif what == "rename":
            assert f"{name}.tmp" in flushed, f"{name} was renamed before its content was on the disk"
            flushed.discard(f"{name}.tmp")
            renamed += 1
    assert renamed > KILLS / 2
