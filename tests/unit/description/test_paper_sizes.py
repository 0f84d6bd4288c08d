"""The exact parameter counts of the paper's rows by closed forms, and the sizes that the paper states."""

from __future__ import annotations

from argparse import Namespace

import pytest
from fairseq.models import ARCH_CONFIG_REGISTRY

from fairseq_sharing import flags
from fairseq_sharing.description import counts
from fairseq_sharing.experiment.config import compose
from fairseq_sharing.layer_map import num_unique

# Entries of the joined WMT16 En-De dictionary of 32k merges that fairseq's own models have, special ones included.
WMT16 = 32_768
WIKITEXT103 = 267_744  # types, <eos> and special symbols included, padded to a multiple of 8
# Row -> millions of parameters in the paper's tables.
TRANSLATION = dict.fromkeys(["vanilla", "admin"], 61) | {"universal_n6": 63, "universal_n12": 63, "vanilla_big": 210}
TRANSLATION |= {f"{strategy}_n{n}": 61 for strategy in ("sequence", "cycle", "cycle_rev") for n in (12, 18)}
LANGUAGE = ["vanilla", "universal", "sequence_n12", "cycle_n12", "cycle_rev_n12"]


def attention(d: int) -> int:
    return 4 * (d * d + d)


def feed_forward(d: int, ffn: int) -> int:
    return d * ffn + ffn + ffn * d + d


@pytest.mark.parametrize("row", TRANSLATION)
def test_translation_rows_have_the_parameters_of_the_closed_form_and_of_the_paper(row):
    train = compose("wmt16_en_de", [f"row={row}"]).train
    model = counts.measure(row, flags.parse(train), WMT16, 5)
    d, ffn = train.encoder_embed_dim, train.encoder_ffn_embed_dim
    encoder_layer = attention(d) + feed_forward(d, ffn) + 2 * 2 * d
    decoder_layer = 2 * attention(d) + feed_forward(d, ffn) + 3 * 2 * d
    sets = {stack: num_unique(layer_map) for stack, layer_map in model.layer_map.items()}
    assert sets["encoder"] == sets["decoder"] == (1 if "universal" in row else 6)
    residuals = 5 * d * train.encoder_layers if train.get("admin") == "profile" else 0
    expected = WMT16 * d + sets["encoder"] * encoder_layer + sets["decoder"] * decoder_layer + residuals
    assert sum(model.unique.values()) == expected
    assert round(expected / 1e6) == TRANSLATION[row]


@pytest.mark.parametrize("row", LANGUAGE)
def test_language_model_rows_have_the_parameters_of_the_closed_form_and_of_the_paper(row):
    train = compose("wikitext103", [f"row={row}"]).train
    model = counts.measure(row, flags.parse(train), WIKITEXT103, 5)
    d, ffn = train.decoder_embed_dim, train.decoder_ffn_embed_dim
    layer = attention(d) + feed_forward(d, ffn) + 2 * 2 * d
    # Bands of 20,000, 40,000 and all other types, of width d, d / 4 and d / 16; the output uses the same matrices.
    inputs = sum(size * width + width * d for size, width in ((20_000, d), (40_000, d // 4), (207_744, d // 16)))
    expected = inputs + 2 * d + num_unique(model.layer_map["decoder"]) * layer  # 2 d: the two bands' own outputs
    assert sum(model.unique.values()) == expected
    assert round(expected / 1e6) == 121


def test_iwslt_has_the_size_and_settings_of_fairseqs_architecture():
    """As in fairseq's training command for this task."""
    ours = flags.parse(compose("iwslt14_de_en", ["row=vanilla"]).train)
    stock = Namespace()
    ARCH_CONFIG_REGISTRY["transformer_iwslt_de_en"](stock)
    size = ("layers", "embed_dim", "ffn_embed_dim", "attention_heads", "normalize_before", "learned_pos")
    for name in [f"{stack}_{part}" for stack in ("encoder", "decoder") for part in size]:
        assert getattr(ours, name) == getattr(stock, name), name
    assert (ours.dropout, ours.attention_dropout, ours.activation_dropout) == (0.3, 0.0, 0.0)
    assert (ours.lr, ours.warmup_updates, ours.max_tokens, ours.weight_decay) == ([0.0005], 4000, 4096, 0.0001)
    assert (ours.share_decoder_input_output_embed, ours.share_all_embeddings) == (True, False)
