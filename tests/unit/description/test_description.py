import json
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from fairseq_sharing import flags
from fairseq_sharing.description import counts
from fairseq_sharing.description.describe import describe
from fairseq_sharing.description.drawing import draw_maps
from fairseq_sharing.errors import SharingError

D, FFN, V, LENGTH = 16, 24, 50, 7
BASE = {
    "arch": "transformer_sharing",
    "encoder_layers": 6,
    "decoder_layers": 4,
    "encoder_embed_dim": D,
    "encoder_ffn_embed_dim": FFN,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "share_all_embeddings": True,
    "optimizer": "adam",
    "sharing": "cycle",
    "unique_layers": 2,
}
ENCODER_LAYER = 4 * (D * D + D) + 2 * D * FFN + FFN + D + 2 * 2 * D
DECODER_LAYER = 8 * (D * D + D) + 2 * D * FFN + FFN + D + 3 * 2 * D


@pytest.fixture(scope="module")
def models():
    return counts.compare("ours", flags.parse(BASE), V, LENGTH)


def test_counts_equal_the_closed_form(models):
    ours, deep, shallow = models
    assert sum(ours.unique.values()) == V * D + 2 * ENCODER_LAYER + 2 * DECODER_LAYER
    assert sum(ours.effective.values()) == V * D + 6 * ENCODER_LAYER + 4 * DECODER_LAYER
    assert deep.unique == deep.effective == ours.effective
    assert shallow.unique == ours.unique
    assert [m.name for m in models] == ["ours", "vanilla, N layers", "vanilla, M layers"]


def test_components_add_up(models):
    ours = models[0]
    assert ours.unique["embeddings"] == ours.effective["embeddings"] == V * D
    assert ours.unique["encoder_attn"] == 2 * 4 * (D * D + D)
    assert ours.effective["self_attn"] == 10 * 4 * (D * D + D)


def test_bytes_are_those_of_adam_in_fp32(models):
    weights = 4 * sum(models[0].unique.values())
    assert models[0].bytes == {"weights": weights, "gradients": weights, "optimizer": 2 * weights}


def test_macs_equal_the_closed_form(models):
    projections = 6 * (4 * D * D + 2 * D * FFN) + 4 * (8 * D * D + 2 * D * FFN) + V * D
    attention = (6 + 2 * 4) * 2 * LENGTH * LENGTH * D
    assert models[0].macs == models[1].macs == LENGTH * projections + attention


def test_the_fast_path_counts_the_same(models):
    fast = counts.compare("ours", flags.parse({**BASE, "fast": True}), V, LENGTH)
    assert [(m.macs, m.unique) for m in fast] == [(m.macs, m.unique) for m in models]


def test_a_language_model_is_described():
    train = {
        "task": "language_modeling",
        "arch": "transformer_lm_sharing",
        "decoder_layers": 4,
        "decoder_embed_dim": D,
        "decoder_input_dim": D,
        "decoder_output_dim": D,
        "decoder_normalize_before": True,
        "decoder_ffn_embed_dim": FFN,
        "decoder_attention_heads": 2,
        "share_decoder_input_output_embed": True,
        "sharing": "cycle",
        "unique_layers": 2,
        "optimizer": "adam",
    }
    ours = counts.compare("ours", flags.parse(train), V, LENGTH)[0]
    layer = ENCODER_LAYER  # a decoder layer without cross-attention
    assert sum(ours.unique.values()) == V * D + 2 * layer + 2 * D  # and the last LayerNorm of pre-norm
    macs = LENGTH * (4 * (4 * D * D + 2 * D * FFN) + V * D) + 4 * 2 * LENGTH * LENGTH * D
    assert ours.macs == macs

    wide = {"decoder_input_dim": 3 * D, "decoder_output_dim": 2 * D, "share_decoder_input_output_embed": False}
    ours = counts.compare("ours", flags.parse({**train, **wide}), V, LENGTH)[0]
    assert sum(ours.unique.values()) == 2 * layer + 2 * D + (3 + 2) * D * D + V * (3 + 2) * D
    assert ours.macs == macs + LENGTH * (3 * D * D + 2 * D * D + V * D), "projections before and after the layers"

    adaptive = {"adaptive_input": True, "adaptive_input_cutoff": f"{V - 9}", "decoder_input_dim": 8 * D}
    adaptive["share_decoder_input_output_embed"] = False
    ours = counts.compare("ours", flags.parse({**train, **adaptive, "adaptive_input_factor": 4}), V, LENGTH)[0]
    assert ours.unique["embeddings"] == (V - 9) * 8 * D + 8 * D * D + 9 * 2 * D + 2 * D * D
    assert ours.macs == macs + LENGTH * 8 * D * D, "the projection of the first band, for every token"


def test_expert_banks_and_active_parameters_are_printed(tmp_path, capsys):
    banks = {"head_dim": 8, "attention_experts": 4, "ffn_experts": 6, "ffn_top_k": 2, "expert_dim": 8}
    train = {name: value for name, value in BASE.items() if "ffn_embed" not in name}
    args = flags.parse({**train, **banks, "arch": "transformer_moeut"})
    ours, deep, _ = counts.compare("ours", args, V, LENGTH)
    assert [m.name for m in (ours, deep)] == ["ours", "unshared, N layers"]
    values = 2 * 4 * D * 8  # matrices of the values, or outputs, of one attention
    assert sum(bank["parameters"] for bank in ours.banks) == 2 * (3 * 2 * values + 2 * 2 * 6 * D * 8)
    unused = 2 * (3 * 2 * values // 2 + 2 * 2 * 4 * D * 8)
    assert ours.active == sum(ours.unique.values()) - unused
    assert deep.unique["ffn"] == 6 * (6 * (2 * D * 8 + D)) + 4 * (6 * (2 * D * 8 + D))

    config = tmp_path / "banks.yaml"
    lines = [f"  {key}: {json.dumps(value)}" for key, value in {**train, **banks, "arch": "transformer_moeut"}.items()]
    config.write_text("\n".join(["dataset: toy", "train:", *lines]))
    describe(config, vocabulary=V, length=LENGTH, memory=1)
    told = capsys.readouterr().out
    assert "active parameters" in told
    fits = [line.split("│")[2:4] for line in told.splitlines() if "longest batch" in line]
    assert [[cell.strip() for cell in row] for row in fits] == [["-", "-"], ["-", "-"]]
    assert "decoder.layers.1.encoder_attn.output" in told


def test_projections_of_an_expert_language_model_are_counted():
    sizes = {"decoder_layers": 2, "decoder_embed_dim": D, "decoder_attention_heads": 2, "head_dim": 8, "ffn_experts": 4}
    sizes |= {"attention_experts": 2, "ffn_top_k": 2, "expert_dim": 8}
    train = {"task": "language_modeling", "arch": "transformer_lm_moeut", **sizes}
    plain, wide = (
        counts.compare("ours", flags.parse({**train, **widths}), V, LENGTH)[0]
        for widths in ({}, {"decoder_input_dim": 3 * D, "decoder_output_dim": 2 * D})
    )
    assert sum(wide.unique.values()) - sum(plain.unique.values()) == 3 * D * D + 2 * D * D + V * (2 + 1) * D
    assert wide.macs - plain.macs == LENGTH * (3 * D * D + 2 * D * D + V * D)


def test_both_gates_of_attention_with_one_expert_are_counted():
    """With one expert per head, nothing is chosen, but values and outputs are still weighted by sigmoids."""
    banks = {"head_dim": 8, "attention_top_k": 1, "ffn_experts": 6, "ffn_top_k": 2, "expert_dim": 8}
    train = {**{name: value for name, value in BASE.items() if "ffn_embed" not in name}, **banks}
    train["arch"] = "transformer_moeut"
    args = [flags.parse({**train, "attention_experts": number}) for number in (1, 2)]
    one, two = (counts.compare("ours", some, V, LENGTH)[0] for some in args)
    attentions = 2 + 2 * 2
    sides = 2 * (6 + 4) + 4 + 2  # cross-attention computes the values of each of its two banks once
    gates, matrices = 2 * 2 * D, 2 * 2 * D * 8  # of the values and outputs, with two heads
    assert sum(two.unique.values()) - sum(one.unique.values()) == attentions * (gates + matrices)
    assert two.active - one.active == attentions * gates
    assert two.macs - one.macs == LENGTH * sides * gates // 2
    assert one.active == sum(one.unique.values()) - (2 + 2) * 4 * 2 * D * 8, "only feed-forward experts are unused"


def test_a_vanilla_model_stands_alone():
    plain = {**BASE, "sharing": "none", "unique_layers": None}
    assert len(counts.compare("plain", flags.parse(plain), V, LENGTH)) == 1


def test_adaptive_softmax_and_layer_norms_are_counted():
    train = {**BASE, "share_all_embeddings": False, "adaptive_softmax_cutoff": "20,40", "layernorm_embedding": True}
    ours = counts.compare("ours", flags.parse(train), V, LENGTH)[0]
    assert ours.unique["output"] > 0
    assert ours.unique["layer_norm"] > 2 * 2 * 2 * D + 2 * 3 * 2 * D


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"unique_layers": 9}, "--unique-layers must be between 1"),
        ({"arch": "nonsense"}, "nonsense"),
        ({"no": 1}, "train.no: unknown key"),
    ],
)
def test_bad_options_are_reported_in_one_line(change, told):
    with pytest.raises(SharingError, match=told) as error:
        flags.parse({**BASE, **change})
    assert "\n" not in str(error.value)


def test_the_drawing_has_a_cell_a_layer():
    svg = ElementTree.fromstring(draw_maps({"encoder": (0, 1, 0), "decoder": (0, 0)}))
    space = "{http://www.w3.org/2000/svg}"
    cells = [rect.get("fill") for rect in svg.iter(f"{space}rect")][1:]
    assert len(cells) == 5
    assert cells[0] == cells[2] != cells[1]
    assert [t.text for t in svg.iter(f"{space}text")].count("encoder") == 1


def test_the_command_prints_json(tmp_path, capsys):
    config = tmp_path / "tiny.yaml"
    train = {**BASE, "encoder_layers": 2, "decoder_layers": 2}
    lines = [f"  {key}: {json.dumps(value)}" for key, value in train.items()]
    config.write_text("\n".join(["dataset: toy", "train:", *lines]))
    options = {"memory": 1, "device": "cpu", "svg": tmp_path / "map.svg", "as_json": True}
    describe(config, vocabulary=V, length=LENGTH, **options)
    told = json.loads(capsys.readouterr().out)
    assert told["models"][0]["layer_map"] == {"encoder": [0, 1], "decoder": [0, 1]}
    assert (tmp_path / "map.svg").read_text().startswith("<svg")
    stored, recomputed = (told["models"][0]["memory"][way] for way in ("stored", "recomputed"))
    assert stored["static"] == sum(told["models"][0]["bytes"].values())
    assert stored["tokens"] == recomputed["tokens"] == 4096
    assert recomputed["peak"] < stored["peak"]
    assert (told["memory"], told["device"]) == (1, "cpu")


def test_memory_is_estimated_only_on_request(tmp_path, capsys):
    config = tmp_path / "tiny.yaml"
    config.write_text("\n".join(["dataset: toy", "train:", *(f"  {key}: {json.dumps(BASE[key])}" for key in BASE)]))
    describe(config, vocabulary=V, length=LENGTH)
    told = capsys.readouterr().out
    assert "longest batch" not in told
    assert "estimate the memory of training with --memory GB; train with: fairseq-sharing train" in told
    describe(config, vocabulary=V, length=LENGTH, memory=1)
    told = capsys.readouterr().out
    assert "longest batch in 1 GB" in told
    assert "--memory" not in told


def test_counting_does_not_import_the_compiler_of_torch(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    model = counts.build_without_storage(flags.parse(BASE), V)
    assert counts.count_macs(model, LENGTH) > 0
    assert "torch._dynamo" not in sys.modules


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory": 0}, "--memory must be more than 0 GB, got 0"),
        ({"device": "tpu"}, "--device must be one of cuda, cpu, got tpu"),
        ({"length": 0}, "--length must be at least 1 token, got 0"),
    ],
)
def test_bad_numbers_are_reported_in_one_line(tmp_path, change, message):
    with pytest.raises(SharingError) as error:
        describe(tmp_path / "none.yaml", **change)
    assert str(error.value) == message


@pytest.mark.parametrize("name", ["dict.en.txt", "dict.txt"])
def test_the_vocabulary_is_that_of_prepared_data(tmp_path, name):
    """The data of a language model have a single dictionary without a language in its name."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / name).write_text("a 3\nb 2\n")
    assert counts.vocabulary_size(tmp_path) == 4 + 2


def test_an_unknown_vocabulary_is_reported(tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text("dataset: toy\ntrain:\n  arch: transformer_sharing\n")
    with pytest.raises(SharingError, match="--vocabulary"):
        describe(config, data=tmp_path)


def test_depth_steps_of_a_universal_transformer_are_counted_and_printed():
    options = {**BASE, "depth_signal": "learned", "position_per_depth": True, "act": "encoder"}
    options["criterion"] = "label_smoothed_cross_entropy_with_ponder"
    ours, deep, _ = counts.compare("ours", flags.parse(options), V, LENGTH)
    assert deep.unique["depth_steps"] == 0
    assert ours.unique["depth_steps"] == (6 + 4) * D + D + 1
    assert ours.depth_steps == {
        "encoder": "depth signal: learned; positions added at every depth; "
        "ACT: halts at a sum of 0.99, at most 6 steps",
        "decoder": "depth signal: learned; positions added at every depth",
    }
