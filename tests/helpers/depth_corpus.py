"""A tiny model with several depths, and binarized sentence pairs for the classifier of its depths."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from fairseq.data import indexed_dataset
from scheduled_training import make_trainer, train
from tiny_models import EOS, VOCABULARY, dictionary, save

from fairseq_sharing.sentence_depth.model import load_model
from fairseq_sharing.sentence_depth.targets import sentence_scores

DEPTHS = (2, 4)
SHALLOW, DEEP = [f"w{n}" for n in range(5, 15)], [f"w{n}" for n in range(25, 35)]


def make_checkpoint(data: Path, path: Path, norm: str = "post", **options) -> Path:
    """Train a cycle model of 4 layers for a few updates."""
    chosen = {"sharing": "cycle", "unique_layers": 2, "depths": "2,3,4", "task": "translation", "seed": 3, **options}
    trainer = make_trainer(data, norm=norm, **chosen)
    train(trainer, 3)
    return save(trainer, path)


def copy_dictionaries(data: Path, folder: Path) -> Path:
    """Copy the dictionaries of an English-German task."""
    folder.mkdir()
    for file in data.glob("dict.*.txt"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def sentences(count: int, seed: int) -> tuple[list[str], list[int]]:
    """Make sentences of two kinds, which have no words in common, and the depth that belongs to each."""
    rng = random.Random(seed)
    depths = [rng.choice(DEPTHS) for _ in range(count)]
    words = {DEPTHS[0]: SHALLOW, DEPTHS[1]: DEEP}
    return [" ".join(rng.choices(words[depth], k=rng.randint(3, 7))) for depth in depths], depths


def write_pairs(checkpoint: Path, folder: Path, count: int = 60, candidates: int = 40) -> None:
    """Binarize sentences with references that are likely at the depth that belongs to the sentence.

    Of random references, the one is chosen whose likelihood at this depth exceeds that at the other depths the most.
    """
    model, _ = load_model(checkpoint, folder, {"source": "en", "target": "de"})
    sources, depths = sentences(count, seed=1)
    generator = torch.Generator().manual_seed(2)
    words = torch.cat(
        [torch.randint(4, VOCABULARY, (candidates, 5), generator=generator), torch.full((candidates, 1), EOS)], 1
    )
    settings = [dict(setting) for setting in model.depths.settings]
    targets = []
    for source, depth in zip(sources, depths, strict=True):
        tokens = dictionary().encode_line(source, add_if_not_exist=False).long().expand(candidates, -1)
        inputs = {"src_tokens": tokens, "src_lengths": torch.full((candidates,), tokens.shape[1])}
        inputs["prev_output_tokens"] = words.roll(1, 1)
        scores = sentence_scores(model, settings, {"net_input": inputs, "target": words}, "likelihood")
        own = [setting["decoder"] for setting in settings].index(depth)
        others = scores[:, [index for index in range(len(settings)) if index != own]].amax(1)
        targets.append(dictionary().string(words[(scores[:, own] - others).argmax()]))
    for lang, lines in (("en", sources), ("de", targets)):
        write_lines(folder / f"valid.en-de.{lang}", lines)


def write_lines(prefix: Path, lines: list[str]) -> None:
    """Binarize lines as fairseq-preprocess does."""
    symbols = dictionary()
    builder = indexed_dataset.make_builder(f"{prefix}.bin", "mmap", len(symbols))
    for line in lines:
        builder.add_item(torch.as_tensor(symbols.encode_line(line, add_if_not_exist=False)))
    builder.finalize(f"{prefix}.idx")
