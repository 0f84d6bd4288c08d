"""A model that was prepared, trained and exported by the commands translates the same with transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fairseq_processes import PLUGIN
from huggingface_models import CODE, load, offline  # noqa: F401

from fairseq_sharing import Translator
from fairseq_sharing.commands import main
from fairseq_sharing.decoding.huggingface_library import quiet
from fairseq_sharing.preparation import toy

SIZES = {"train": 3000, "valid": 20, "test": 100}
MODEL = [
    *("--arch", "transformer_sharing_tiny", "--sharing", "cycle_rev", "--unique-layers", "1"),
    *("--encoder-layers", "2", "--decoder-layers", "2", "--share-all-embeddings", "--max-source-positions", "64"),
    *("--encoder-embed-dim", "32", "--decoder-embed-dim", "32", "--max-target-positions", "64"),
    *("--encoder-ffn-embed-dim", "64", "--decoder-ffn-embed-dim", "64", "--fast"),
    *("--encoder-normalize-before", "--decoder-normalize-before", "--dropout", "0"),
]
TRAINING = [
    *("--task", "translation", "--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1", "--cpu"),
    *("--optimizer", "adam", "--lr", "0.01", "--clip-norm", "1.0", "--max-tokens", "800", "--max-epoch", "5"),
    *("--no-epoch-checkpoints", "--disable-validation", "--seed", "1", "--user-dir", PLUGIN),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The data directory of a part of the toy corpus, made by prepare."""
    folder = tmp_path_factory.mktemp("toy")
    for name, pairs in toy.generate(SIZES).items():
        for lang in ("en", "de"):
            (folder / f"{name}.{lang}").write_text("".join(f"{pair[lang]}\n" for pair in pairs))
    words = ["prepare", "files", "--source-lang", "en", "--target-lang", "de", "--train", str(folder / "train")]
    words += ["--valid", str(folder / "valid"), "--test", f"test={folder / 'test'}", "--subword-size", "400"]
    assert main([*words, "--workers", "1", "--out", str(folder / "data")]) == 0
    return folder / "data"


@pytest.fixture(scope="module")
def checkpoint(commands, data) -> Path:
    """A model trained for long enough to end its translations."""
    folder = data.parent / "checkpoints"
    commands.run("fairseq_cli.train", data / "bin", *MODEL, *TRAINING, "--save-dir", folder)
    return folder / "checkpoint_last.pt"


@pytest.mark.usefixtures("offline")
def test_text_of_the_folder_is_the_text_of_the_translator(checkpoint, data, tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    lines = (data / "raw" / "test.en").read_text().splitlines()
    assert len(lines) == 100
    for name, more in (("stock", []), ("own", ["--keep-sharing"])):
        words = ["export", str(checkpoint), "--data", str(data), "--to", "huggingface", *more]
        assert main([*words, "--output", str(tmp_path / name)]) == 0
    translator = Translator(checkpoint, data=data, threads=1)
    model, own = load(tmp_path / "stock"), load(tmp_path / "own", **CODE)
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "own", **CODE)
    inputs = tokenizer(lines, return_tensors="pt", padding=True, truncation=True)
    for settings, search in (
        ({}, {"beam": 5}),
        ({"num_beams": 1}, {"beam": 1}),
        ({"length_penalty": 0.6}, {"beam": 5, "lenpen": 0.6}),
    ):
        wanted = translator.translate(lines, **search)
        assert len({len(text.split()) for text in wanted}) > 3, "lengths differ"
        ended = [text for text in wanted if len(text.split()) < 30]
        assert len(ended) >= 90
        found = model.generate(**inputs, **settings)
        texts = tokenizer.batch_decode(found, skip_special_tokens=True)
        # A hypothesis of 64 subwords is cut off by both, with different scores.
        same = [text for text, target in zip(texts, wanted, strict=True) if text == target]
        assert set(ended) <= set(same), settings
        assert torch.equal(own.generate(**inputs, **settings), found)
