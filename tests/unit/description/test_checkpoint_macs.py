"""MACs of checkpoints, compared with closed forms."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fairseq.data import Dictionary
from tiny_models import EMBED, FFN, VOCABULARY, arguments, build

from fairseq_sharing.description.checkpoint_macs import LENGTH, macs_of_checkpoint

LAYERS = 4


def dense(length: int, vocabulary: int, layers: int = LAYERS) -> int:
    """The products of an encoder-decoder: projections, scores and values of attention, feed-forward blocks, output."""
    attention, ffn = 4 * EMBED**2 * length + 2 * EMBED * length**2, 2 * EMBED * FFN * length
    return layers * (attention + ffn) + layers * (2 * attention + ffn) + length * EMBED * vocabulary


def checkpoint(folder: Path, vocabulary: int = VOCABULARY, **options) -> tuple[Path, Path]:
    """Write a checkpoint of arguments and the dictionary of its target language."""
    options = {"encoder_layers": LAYERS, "decoder_layers": LAYERS, **options}
    file, symbols = folder / "checkpoint.pt", Dictionary()
    torch.save({"args": arguments(**options), "model": build(**options).state_dict()}, file)
    for number in range(vocabulary - len(symbols)):
        symbols.add_symbol(f"w{number}")
    symbols.save(str(folder / "dict.txt"))
    return file, folder / "dict.txt"


@pytest.mark.parametrize(
    "options",
    [
        {"arch": "transformer"},
        {"sharing": "none"},
        {"sharing": "cycle", "unique_layers": 2},
        {"sharing": "universal"},
        {"sharing": "cycle", "unique_layers": 2, "fast": True},
        {"sharing": "cycle", "unique_layers": 2, "encoder_embed_path": "/not/there"},
    ],
    ids=str,
)
def test_sharing_does_not_change_the_macs(tmp_path, options):
    path = options.pop("encoder_embed_path", None)
    file, dictionary = checkpoint(tmp_path, **options)
    if path:
        saved = torch.load(file, weights_only=False)
        saved["args"].encoder_embed_path = path
        torch.save(saved, file)
    assert macs_of_checkpoint(file, dictionary) == dense(LENGTH, VOCABULARY)


def test_the_output_is_that_of_the_target_dictionary(tmp_path):
    options = {"share_all_embeddings": False, "share_decoder_input_output_embed": True}
    file, dictionary = checkpoint(tmp_path, vocabulary=90, sharing="none", **options)
    assert macs_of_checkpoint(file, dictionary) == dense(LENGTH, 90)


def test_a_language_model_is_counted_at_its_training_length(tmp_path):
    options = {"tokens_per_sample": 40, "decoder_input_dim": EMBED, "decoder_output_dim": EMBED}
    file, dictionary = checkpoint(tmp_path)
    saved = torch.load(file, weights_only=False)
    saved["args"].arch = "transformer_lm_sharing"
    vars(saved["args"]).update(options, sharing="none")
    torch.save(saved, file)
    layer = 4 * EMBED**2 * 40 + 2 * EMBED * 40**2 + 2 * EMBED * FFN * 40
    assert macs_of_checkpoint(file, dictionary) == LAYERS * layer + 40 * EMBED * VOCABULARY


def test_other_models_have_no_count(tmp_path):
    file, dictionary = checkpoint(tmp_path)
    saved = torch.load(file, weights_only=False)
    saved["args"].arch = "lstm"
    torch.save(saved, file)
    assert macs_of_checkpoint(file, dictionary) is None
