"""What the tests of fairseq's commands train: a corpus and a model, both tiny."""

from __future__ import annotations

import random
from pathlib import Path

# Name of a subset -> sentences; none is a multiple of 8, fairseq's --required-batch-size-multiple.
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
    """Write SUBSET.en, lines of words, and SUBSET.de, the same words in the opposite order, each with an ending."""
    draw = random.Random(1)
    for subset, sentences in SUBSETS.items():
        lines = [draw.choices(_WORDS, k=draw.randint(2, 9)) for _ in range(sentences)]
        (folder / f"{subset}.en").write_text("".join(" ".join(line) + "\n" for line in lines))
        (folder / f"{subset}.de").write_text("".join(" ".join(f"{w}n" for w in line[::-1]) + "\n" for line in lines))
