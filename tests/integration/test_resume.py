"""A training that stops and goes on ends with the same bits as one that never stopped, on one rank and on two."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest
import torch
from fairseq_processes import logged

# Mid-epoch checkpoints (an epoch has 13 batches, so 7 updates), dropout, two batches an update, one loader worker.
FLAGS = ["--dropout", "0.2", "--attention-dropout", "0.1", "--activation-dropout", "0.1", "--update-freq", "2"]
FLAGS += ["--num-workers", "1", "--save-interval-updates", "4", "--max-update", "17"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def train_on_ranks(commands, train_words):
    """Trains in some processes, each a rank; gives the log of the first."""

    def run(save_dir: Path, ranks: int, *more: object) -> str:
        distributed = ["--distributed-world-size", ranks, "--distributed-init-method", f"tcp://localhost:{free_port()}"]
        distributed += ["--distributed-no-spawn", "--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp"]
        words = train_words(save_dir, *more, *(distributed if ranks > 1 else ()))
        started = [
            commands.start("fairseq_cli.train", *words, *(("--distributed-rank", rank) if ranks > 1 else ()))
            for rank in range(ranks)
        ]
        return [command.wait() for command in started][0].stdout

    return run


@pytest.fixture(scope="module", params=[1, 2], ids=lambda ranks: f"{ranks} ranks")
def uninterrupted(request, tmp_path_factory, train_on_ranks) -> tuple[int, Path]:
    """The number of ranks, and the checkpoints of a training that ran to its end."""
    folder = tmp_path_factory.mktemp(f"uninterrupted{request.param}")
    train_on_ranks(folder, request.param, *FLAGS)
    return request.param, folder


def assert_same_bits(one: Path, other: Path) -> None:
    """Compare the weights, the optimizer's state and the place in the data of two checkpoints."""
    states = [torch.load(path, weights_only=False) for path in (one, other)]
    for part in ("model", "last_optimizer_state"):
        _assert_equal(states[0][part], states[1][part], part)
    places = [state["extra_state"]["train_iterator"] for state in states]
    assert places[0] == places[1]
    histories = [state["optimizer_history"][-1] for state in states]
    assert histories[0] == histories[1]


def _assert_equal(one, other, name: str) -> None:
    assert type(one) is type(other), name
    if torch.is_tensor(one):
        assert torch.equal(one, other), f"{name}: {(one - other).abs().max()}"
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), name
        for key in one:
            _assert_equal(one[key], other[key], f"{name}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), name
        for index, pair in enumerate(zip(one, other, strict=True)):
            _assert_equal(*pair, f"{name}.{index}")
    else:
        assert one == other, name


@pytest.mark.parametrize("name", ["checkpoint_1_4.pt", "checkpoint1.pt", "checkpoint_2_12.pt"])
def test_going_on_gives_the_same_bits(uninterrupted, train_on_ranks, tmp_path, name):
    ranks, folder = uninterrupted
    shutil.copy(folder / name, tmp_path / "checkpoint_last.pt")
    train_on_ranks(tmp_path, ranks, *FLAGS)
    assert_same_bits(tmp_path / "checkpoint_last.pt", folder / "checkpoint_last.pt")
    # Not the file that was there: it went on and wrote what the other one did.
    assert {path.name for path in tmp_path.iterdir()} < {path.name for path in folder.iterdir()}


def test_both_ranks_take_part(uninterrupted, train_on_ranks, tmp_path):
    """Words per batch of two ranks are those of one rank with twice the batches an update."""
    words = []
    for ranks, update_freq in ((1, 1), (1, 2), (2, 1)):
        log = train_on_ranks(tmp_path / f"{ranks}x{update_freq}", ranks, "--update-freq", update_freq, "--max-update", 3)
        words.append([float(entry["wpb"]) for entry in logged(log, "wpb")])
    assert words[1] == words[2]
    assert os
