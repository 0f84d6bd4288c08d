"""Equal software, threads and processor give equal bits: after a resume, and in another process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from fairseq_processes import ENVIRONMENT, ROOT
from tiny_training import CYCLE_REV, LAYERS, assert_same_bits

# Dropout, two batches per update (7 updates per epoch on 1 rank, 4 on 2), a data loader worker, mid-epoch checkpoints.
FLAGS = ["--dropout", "0.2", "--attention-dropout", "0.1", "--activation-dropout", "0.1", "--update-freq", "2"]
FLAGS += ["--num-workers", "1", "--save-interval-updates", "3", "--max-update", "13"]
# What may change without a change of the result.
OTHER_FLAGS = ["--num-workers", "0", "--log-interval", "5", "--save-interval-updates", "8", "--disable-validation"]

SHARING = ["--arch", "transformer_sharing", *LAYERS]
CYCLE = [*SHARING, "--sharing", "cycle", "--unique-layers", "2"]
FAST = ["--fast", "--criterion", "fused_label_smoothed_cross_entropy", "--optimizer", "fused_adam"]
ACT = ["--act", "both", "--depth-signal", "sinusoidal", "--criterion", "label_smoothed_cross_entropy_with_ponder"]
BANKS = ["--head-dim", "8", "--attention-experts", "4", "--ffn-experts", "6", "--ffn-top-k", "2", "--expert-dim", "8"]
MOEUT = ["--arch", "transformer_moeut", *LAYERS, *BANKS, "--decoder-attention-heads", "2", "--expert-dropout", "0.1"]
BALANCED = ["--activation-dropout", "0", "--criterion", "moe_cross_entropy", "--ffn-entropy", "0.1"]
DYNAMIC = ["--task", "translation_sharing", "--sharing-schedule", "dynamic", "--dynamic-interval", "3"]


class Training(NamedTuple):
    """A training: its number of ranks, its model, its other flags, and where it is resumed."""

    ranks: int
    model: list[str]
    flags: list[str]
    places: tuple[str, ...]


# The position in the data depends on the place and the number of ranks, not on the model.
FIRST, BETWEEN = ("in the first epoch",), ("between epochs",)
EVERYWHERE = (*FIRST, *BETWEEN, "in a later epoch")
TRAININGS = {
    "cycle_rev": Training(1, CYCLE_REV, FLAGS, EVERYWHERE),
    "cycle_rev on 2 ranks": Training(2, CYCLE_REV, FLAGS, EVERYWHERE),
    "cycle_rev, fast, on 2 ranks": Training(2, CYCLE_REV, [*FLAGS, *FAST], FIRST),
    "vanilla": Training(1, SHARING, FLAGS, FIRST),
    "cycle, fast, Admin": Training(1, CYCLE, [*FLAGS, *FAST, "--admin", "profile"], BETWEEN),
    "universal with ACT": Training(1, [*SHARING, "--sharing", "universal"], [*FLAGS, *ACT], FIRST),
    "MoEUT": Training(1, MOEUT, [*FLAGS, *BALANCED], BETWEEN),
    "dynamic layer tying": Training(1, SHARING, [*FLAGS, *DYNAMIC], (*FIRST, *BETWEEN)),
}
ONE_RANK = [name for name, training in TRAININGS.items() if training.ranks == 1]
RESUMES = [(name, place) for name, training in TRAININGS.items() for place in training.places]

# Trains in one process with each of the command lines of standard input.
TRAIN_EACH = """
import json, sys
from fairseq_cli import train
for words in json.load(sys.stdin):
    sys.argv[1:] = words
    train.cli_main()
"""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, train_on_ranks):
    """Return the checkpoints of a completed training, by its name."""
    folders: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp("uninterrupted")
            training = TRAININGS[name]
            train_on_ranks(folders[name], training.ranks, *training.flags, model=training.model)
        return folders[name]

    return folder


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory, train_words) -> Path:
    """Folders with the checkpoints of all trainings on one rank, made by another process.

    Its hash seed differs, so sets have another order, and it runs the trainings one after the other.
    """
    place = tmp_path_factory.mktemp("elsewhere")
    words = [
        train_words(place / name, *TRAININGS[name].flags, *OTHER_FLAGS, model=TRAININGS[name].model)
        for name in ONE_RANK
    ]
    subprocess.run(
        [sys.executable, "-c", TRAIN_EACH],
        input=json.dumps(words, default=str),
        env={**os.environ, **ENVIRONMENT, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)},
        **{"check": True, "text": True, "stdout": subprocess.DEVNULL, "timeout": 240},
    )
    return place


@pytest.mark.parametrize(("name", "place"), RESUMES)
def test_going_on_gives_the_same_bits(uninterrupted, train_on_ranks, tmp_path, name, place):
    folder, training = uninterrupted(name), TRAININGS[name]
    inside = sorted(folder.glob("checkpoint_*_*.pt"), key=lambda path: path.stat().st_mtime_ns)
    start = {
        "in the first epoch": inside[0],
        "between epochs": folder / "checkpoint1.pt",
        "in a later epoch": inside[-2],
    }[place]
    shutil.copy(start, tmp_path / "checkpoint_last.pt")
    train_on_ranks(tmp_path, training.ranks, *training.flags, model=training.model)
    assert_same_bits(tmp_path / "checkpoint_last.pt", folder / "checkpoint_last.pt")
    assert {path.name for path in tmp_path.iterdir()} < {path.name for path in folder.iterdir()}, (
        "training restarted from the beginning"
    )


@pytest.mark.parametrize("name", ONE_RANK)
def test_another_process_gives_the_same_bits(uninterrupted, elsewhere, name):
    for checkpoint in ("checkpoint1.pt", "checkpoint_last.pt"):
        assert_same_bits(elsewhere / name / checkpoint, uninterrupted(name) / checkpoint)
