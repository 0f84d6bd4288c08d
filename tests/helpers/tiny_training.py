"""A tiny corpus and a tiny model for the tests of fairseq's commands."""

from __future__ import annotations

import random
import socket
from pathlib import Path

import torch

# Subset -> number of sentences; none is a multiple of 8, fairseq's --required-batch-size-multiple.
SUBSETS = {"train": 300, "valid": 61, "test": 461, "test1": 5}
_WORDS = [f"{first}{second}" for first in "bdfghk" for second in "aeiou"]

LAYERS = ["--encoder-layers", "4", "--decoder-layers", "4"]
CYCLE_REV = ["--arch", "transformer_sharing", *LAYERS, "--sharing", "cycle_rev", "--unique-layers", "2"]
TRAINING = [
    *("--task", "translation", "-s", "en", "-t", "de", "--seed", "1", "--cpu", "--share-all-embeddings"),
    *("--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "24", "--encoder-attention-heads", "2"),
    *("--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1", "--batch-size", "24"),
    *("--optimizer", "adam", "--lr", "0.005", "--clip-norm", "1.0", "--log-format", "json", "--log-interval", "1"),
]


def write_corpus(folder: Path) -> None:
    """Write SUBSET.en, and SUBSET.de with the same words in reverse order and with a suffix each."""
    draw = random.Random(1)
    for subset, sentences in SUBSETS.items():
        lines = [draw.choices(_WORDS, k=draw.randint(2, 9)) for _ in range(sentences)]
        (folder / f"{subset}.en").write_text("".join(" ".join(line) + "\n" for line in lines))
        (folder / f"{subset}.de").write_text("".join(" ".join(f"{w}n" for w in line[::-1]) + "\n" for line in lines))


def distributed(ranks: int) -> list[object]:
    """Return the flags for distributed training without GPUs."""
    flags = ["--distributed-world-size", ranks, "--distributed-init-method", f"tcp://localhost:{free_port()}"]
    return [*flags, "--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp"]


def free_port() -> int:
    """Find a free port."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def read_checkpoint(path: Path) -> dict:
    """Read a checkpoint as the commands do."""
    # Not at the start: fairseq's processes import this module.
    from fairseq_sharing.checkpoints.files import load_checkpoint

    return load_checkpoint(path)


def assert_same_bits(one: Path, other: Path) -> None:
    """Compare the weights, the optimizer state and the data position of two checkpoints."""
    states = [read_checkpoint(path) for path in (one, other)]
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
