"""A corpus and a configuration for ``fairseq-sharing train`` with the same number of tokens in every batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from fairseq_processes import Commands

from fairseq_sharing.resources import PACKAGE_DIR

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PACKAGE_DIR.parent), "CUDA_VISIBLE_DEVICES": ""}
# Every sentence has 6 words and an end token. fairseq batches by multiples of 8, so a batch has 56 tokens.
SENTENCES, TOKENS = 96, 7
CONFIG = """
dataset: words
train:
  arch: transformer_sharing_tiny
  sharing: cycle_rev
  unique_layers: 2
  encoder_layers: 4
  decoder_layers: 4
  encoder_embed_dim: 16
  decoder_embed_dim: 16
  encoder_ffn_embed_dim: 16
  decoder_ffn_embed_dim: 16
  optimizer: adam
  lr: 0.001
  max_tokens: 56
  max_update: 6
  log_interval: 1
  save_interval_updates: 3
"""


def call(*words, cwd: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done


def make_place(place: Path, commands: Commands) -> Path:
    """Write data/words and words.yaml to a directory."""
    raw = place / "data" / "words" / "raw"
    raw.mkdir(parents=True)
    for split, count in (("train", SENTENCES), ("valid", 8)):
        lines = [" ".join("abcdefgh"[(i * j + i) % 8] for j in range(1, TOKENS)) + "\n" for i in range(count)]
        for lang in ("en", "de"):
            (raw / f"{split}.{lang}").write_text("".join(lines))
    commands.run(
        *("fairseq_cli.preprocess", "-s", "en", "-t", "de", "--joined-dictionary"),
        *("--trainpref", raw / "train", "--validpref", raw / "valid", "--destdir", place / "data" / "words" / "bin"),
    )
    (place / "data" / "words" / "manifest.json").write_text('{"source_lang": "en", "target_lang": "de"}')
    (place / "words.yaml").write_text(CONFIG)
    return place
