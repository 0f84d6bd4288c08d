"""The shared language model through fairseq's own commands: train, resume, and perplexity."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fairseq_sharing.checkpoint import load_checkpoint
from fairseq_sharing.resources import PACKAGE_DIR

WORDS = [f"w{number}" for number in range(30)]


def fairseq(command: str, *words: object) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    line = [sys.executable, "-P", "-m", f"fairseq_cli.{command}", *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lm")
    pick = random.Random(3)
    for split, lines in (("train", 300), ("valid", 40), ("test", 41)):
        # Every word is followed by the next one or the one after: something to learn.
        text = []
        for _ in range(lines):
            at = pick.randrange(30)
            text.append(" ".join(WORDS[(at := (at + pick.choice((1, 2))) % 30)] for _ in range(12)))
        (folder / split).write_text("\n".join(text) + "\n", encoding="utf-8")
    prefixes = [word for split in ("train", "valid", "test") for word in (f"--{split}pref", folder / split)]
    fairseq("preprocess", "--only-source", *prefixes, "--destdir", folder / "bin", "--workers", 1)
    return folder


def train(corpus: Path, save: Path, updates: int) -> str:
    return fairseq(
        *("train", corpus / "bin", "--user-dir", PACKAGE_DIR, "--task", "language_modeling", "--cpu"),
        *("--arch", "transformer_lm_sharing", "--sharing", "cycle_rev", "--unique-layers", 2, "--decoder-layers", 4),
        *("--decoder-embed-dim", 32, "--decoder-ffn-embed-dim", 64, "--decoder-attention-heads", 2),
        *("--share-decoder-input-output-embed", "--sample-break-mode", "eos", "--tokens-per-sample", 64),
        *("--optimizer", "adam", "--lr", 0.01, "--max-tokens", 512, "--max-update", updates, "--seed", 1),
        *("--save-dir", save, "--no-epoch-checkpoints", "--num-workers", 0, "--log-format", "simple"),
    )


def test_train_resume_and_perplexity(corpus, tmp_path):
    train(corpus, tmp_path / "lm", 20)
    told = train(corpus, tmp_path / "lm", 60)
    assert "@ 20 updates" in told, "the second training goes on from the first"
    state = load_checkpoint(tmp_path / "lm" / "checkpoint_last.pt")["model"]
    assert state["_extra_state"]["stacks"]["decoder"]["layer_map"] == [0, 1, 1, 0]
    assert not [name for name in state if ".layers.2." in name or ".layers.3." in name]
    told = fairseq(
        *("eval_lm", corpus / "bin", "--user-dir", PACKAGE_DIR, "--path", tmp_path / "lm" / "checkpoint_last.pt"),
        *("--task", "language_modeling", "--gen-subset", "test", "--sample-break-mode", "eos", "--cpu"),
    )
    perplexity = float(re.findall(r"Perplexity: ([\d.]+)", told)[-1])
    # Of 30 words each is followed by one of two: far from 30 once anything was learned.
    assert 2.0 < perplexity < 12.0
