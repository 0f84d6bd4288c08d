"""A resumed training is bitwise equal to an uninterrupted one: on one rank, on two, and with --fast."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_training import assert_same_bits

# Dropout, two batches per update (7 updates per epoch on 1 rank, 4 on 2), a data loader worker, mid-epoch checkpoints.
FLAGS = ["--dropout", "0.2", "--attention-dropout", "0.1", "--activation-dropout", "0.1", "--update-freq", "2"]
FLAGS += ["--num-workers", "1", "--save-interval-updates", "3", "--max-update", "17"]


FAST = ["--fast", "--criterion", "fused_label_smoothed_cross_entropy", "--optimizer", "fused_adam"]


@pytest.fixture(
    scope="module", params=[(1, FLAGS), (2, FLAGS), (2, FLAGS + FAST)], ids=["1 rank", "2 ranks", "2 ranks, fast"]
)
def uninterrupted(request, tmp_path_factory, train_on_ranks) -> tuple[int, list[str], Path]:
    """The number of ranks, the flags, and the checkpoints of a completed training."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    ranks, flags = request.param
    train_on_ranks(folder, ranks, *flags)
    return ranks, flags, folder


@pytest.mark.parametrize("place", ["in the first epoch", "between epochs", "in a later epoch"])
def test_going_on_gives_the_same_bits(uninterrupted, train_on_ranks, tmp_path, place):
    ranks, flags, folder = uninterrupted
    inside = sorted(folder.glob("checkpoint_*_*.pt"), key=lambda path: path.stat().st_mtime_ns)
    start = {
        "in the first epoch": inside[0],
        "between epochs": folder / "checkpoint1.pt",
        "in a later epoch": inside[-2],
    }[place]
    shutil.copy(start, tmp_path / "checkpoint_last.pt")
    train_on_ranks(tmp_path, ranks, *flags)
    assert_same_bits(tmp_path / "checkpoint_last.pt", folder / "checkpoint_last.pt")
    assert {path.name for path in tmp_path.iterdir()} < {path.name for path in folder.iterdir()}, (
        "training restarted from the beginning"
    )
