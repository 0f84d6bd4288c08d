"""Structures in the other parts: tying, untying, changing maps, RoBERTa, MoEUT, descriptions."""

from __future__ import annotations

import copy

import pytest
import torch
from scheduled_training import changes
from scheduled_training import make_trainer as make_scheduled
from scheduled_training import train as train_scheduled
from sharing_cases import BY_NAME, LAYERS
from structure_cases import build_lm, build_roberta
from tied_models import CYCLE, checkpoint_of, load, logits
from tiny_models import EMBED, FFN, VOCABULARY, arguments, batch, build, build_case, make_trainer, save, train_step

from fairseq_sharing import flags
from fairseq_sharing.checkpoints.files import load_checkpoint, save_atomically
from fairseq_sharing.checkpoints.tie import tie
from fairseq_sharing.description.counts import compare
from fairseq_sharing.errors import SharingError
from fairseq_sharing.schedules.at_rest import untie

# Two structures at once in each model, and all four over both.
MIXED = (
    {"decoder_no_ffn": True, "deepnorm": True},
    {"embedding_factor_dim": 6, "b2t": True},
)
STRUCTURES = pytest.mark.parametrize("structures", MIXED, ids=lambda options: ",".join(options))


@STRUCTURES
@pytest.mark.parametrize("align", [False, True])
def test_a_trained_model_is_tied(structures, align):
    model = build_case(BY_NAME["none"], "post", **structures)
    checkpoint = checkpoint_of(model, arguments(**structures))
    same = load(tie(checkpoint, {"sharing": "none"}), **structures)
    assert torch.equal(logits(same), logits(model))
    shared = load(tie(checkpoint, CYCLE, "average", align=align), **CYCLE, **structures)
    layers = model.encoder.layers
    mean = (layers[1].self_attn_layer_norm.bias + layers[4].self_attn_layer_norm.bias) / 2
    torch.testing.assert_close(shared.encoder.layers[4].self_attn_layer_norm.bias, mean, rtol=0, atol=1e-6)
    assert shared.encoder.layers[4].fc1.weight is shared.encoder.layers[1].fc1.weight


@STRUCTURES
def test_an_untied_checkpoint_resumes_with_the_same_scores(structures, data_dir, tmp_path):
    trainer = make_trainer(data_dir, BY_NAME["cycle"], **structures)
    train_step(trainer)
    path = save(trainer, tmp_path / "checkpoint1.pt")
    save_atomically(untie(load_checkpoint(path)), tmp_path / "untied.pt")
    untied = make_trainer(data_dir, BY_NAME["none"], **structures)
    untied.load_checkpoint(str(tmp_path / "untied.pt"))
    assert torch.equal(logits(untied.model), logits(trainer.model))
    untied.model.train()
    train_step(untied, seed=4)
    assert untied.get_num_updates() == 2


@STRUCTURES
def test_a_map_changes_during_training(structures, data_dir):
    words = ("--sharing-schedule", "unshare", "--unshare-at", "1")
    trainer = make_scheduled(data_dir, *words, norm="post", sharing="universal", **structures)
    assert len({id(layer.self_attn.q_proj.weight) for layer in trainer.model.decoder.layers}) == 1
    before = logits(copy.deepcopy(trainer.model))
    train_scheduled(trainer, 1)
    assert len(changes(trainer)) == 1
    layers = trainer.model.decoder.layers
    assert len({id(layer.self_attn.q_proj.weight) for layer in layers}) == len(layers) == 4
    assert torch.equal(layers[0].self_attn.q_proj.weight, layers[3].self_attn.q_proj.weight)
    train_scheduled(trainer, 1)
    assert not torch.equal(layers[0].self_attn.q_proj.weight, layers[3].self_attn.q_proj.weight)
    assert not torch.equal(logits(trainer.model), before)


@pytest.mark.parametrize("structures", [{"encoder_no_ffn": True}, {"b2t": True}])
def test_roberta_computes_the_layers(structures):
    model = build_roberta(sharing="cycle", unique_layers=3, **structures)
    layer = model.encoder.sentence_encoder.layers[4]
    x = torch.randn(5, 2, EMBED)
    middle = layer.self_attn_layer_norm(x + layer.self_attn(x, x, x, need_weights=False)[0])
    expected = middle
    if "b2t" in structures:
        expected = layer.final_layer_norm(x + middle + layer.fc2(layer.activation_fn(layer.fc1(middle))))
    torch.testing.assert_close(layer(x, None), expected, rtol=0, atol=1e-6)
    assert model(batch()["src_tokens"])[0].shape[-1] == VOCABULARY


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (build_roberta, {"deepnorm": True}, "--deepnorm True .*those of BERT"),
        (build_roberta, {"embedding_factor_dim": 4}, "--embedding-factor-dim 4 .*width of the model"),
        (build_roberta, {"decoder_no_ffn": True}, "--decoder-no-ffn: this model has no decoder; .* --encoder-no-ffn"),
        (build_lm, {"encoder_no_ffn": True}, "--encoder-no-ffn: this model has no encoder; allowed: --decoder-no-ffn"),
        (
            lambda **options: build("pre", arch="transformer_moeut_tiny", **options),
            {"decoder_no_ffn": True},
            "--decoder-no-ffn True .*changes the layers and embeddings of fairseq",
        ),
    ],
)
def test_models_that_do_not_have_it_name_it(make, options, message):
    with pytest.raises(SharingError, match=message):
        make(**options)


def test_all_structures_are_counted():
    """Parameters and MACs of a model without FFN in the decoder and with factorized embeddings, by hand."""
    length, factor = 7, 6
    train = {
        "arch": "transformer_sharing",
        "optimizer": "adam",
        "share_all_embeddings": True,
        "sharing": "cycle",
        "unique_layers": 3,
        "decoder_no_ffn": True,
        "embedding_factor_dim": factor,
        **{f"{stack}_layers": LAYERS for stack in ("encoder", "decoder")},
        **{f"{stack}_embed_dim": EMBED for stack in ("encoder", "decoder")},
        **{f"{stack}_attention_heads": 2 for stack in ("encoder", "decoder")},
        "encoder_ffn_embed_dim": FFN,
    }
    ours, deep, _ = compare("ours", flags.parse(train), VOCABULARY, length)
    ffn, attention = 2 * EMBED * FFN + FFN + EMBED, 4 * (EMBED * EMBED + EMBED)
    assert ours.unique["embeddings"] == VOCABULARY * factor + factor * EMBED
    assert (ours.unique["ffn"], ours.effective["ffn"]) == (3 * ffn, 6 * ffn)
    assert ours.unique["layer_norm"] == 3 * 2 * EMBED * (2 + 2)
    assert ours.unique["self_attn"] == 3 * 2 * attention
    assert deep.name == "unshared, N layers"
    assert deep.unique == ours.effective
    layers = 6 * (4 * EMBED * EMBED + 2 * EMBED * FFN) + 6 * 8 * EMBED * EMBED
    embeddings = 2 * factor * EMBED + EMBED * factor + factor * VOCABULARY  # both inputs, and the output in two steps
    scores = (6 + 2 * 6) * 2 * length * length * EMBED
    assert ours.macs == length * (layers + embeddings) + scores
