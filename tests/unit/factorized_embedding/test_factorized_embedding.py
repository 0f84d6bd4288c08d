"""Factorized embeddings: values, ties, padding, decoding, checkpoints and export."""

from __future__ import annotations

import pytest
import torch
from fairseq import checkpoint_utils
from sharing_cases import BY_NAME
from step_by_step import check_step_by_step
from structure_cases import build_lm, check_checkpoint, export_case, forward_by_hand
from tiny_models import EMBED, PAD, VOCABULARY, batch, build, loss, make_trainer, perturb, save, train_step

from fairseq_sharing.errors import SharingError

FACTOR = 6
FACTORIZED = {"embedding_factor_dim": FACTOR}
TIES = {
    "all": {},
    "decoder": {"share_all_embeddings": False, "share_decoder_input_output_embed": True},
    "none": {"share_all_embeddings": False},
}


@pytest.fixture(params=TIES)
def ties(request):
    return TIES[request.param]


def test_forward_equals_the_products_by_hand(ties, norm):
    model = perturb(build(norm, **FACTORIZED, **ties)).eval()
    torch.testing.assert_close(model(**batch())[0], forward_by_hand(model, batch()), rtol=0, atol=1e-5)


def test_parameters_and_ties():
    plain, model = build("post"), build("post", **FACTORIZED)
    counts = [sum(parameter.numel() for parameter in each.parameters()) for each in (plain, model)]
    assert counts[0] - counts[1] == VOCABULARY * EMBED - (VOCABULARY * FACTOR + FACTOR * EMBED)
    assert model.decoder.embed_tokens is model.encoder.embed_tokens
    assert model.decoder.output_projection.weight is model.encoder.embed_tokens.weight
    assert model.decoder.project_out_dim.weight is model.encoder.embed_tokens.projection.weight
    one = build("post", **FACTORIZED, **TIES["decoder"])
    assert one.decoder.embed_tokens.weight is not one.encoder.embed_tokens.weight
    assert one.decoder.project_out_dim.weight is one.decoder.embed_tokens.projection.weight
    none = build("post", **FACTORIZED, **TIES["none"])
    assert none.decoder.output_projection.weight.shape == (VOCABULARY, EMBED)
    assert none.decoder.project_out_dim is None


def test_with_an_identity_it_is_a_plain_embedding(ties):
    """E has the width of the model and P is the identity: equal scores, and an equal gradient of E."""
    plain = perturb(build("post", **ties))
    model = build("post", embedding_factor_dim=EMBED, **ties)
    state = {**model.state_dict(), **{k: v for k, v in plain.state_dict().items() if k != "_extra_state"}}
    for name in state:
        if name.endswith("projection.weight") and "embed_tokens" in name:
            state[name] = torch.eye(EMBED)
    model.load_state_dict(state)
    for each in (plain, model):
        each.eval()
        loss(each, batch()).backward()
    assert torch.equal(model(**batch())[0], plain(**batch())[0])
    pairs = [each.decoder.embed_tokens.weight.grad for each in (model, plain)]
    torch.testing.assert_close(*pairs, rtol=1e-5, atol=1e-5)


def test_initial_values():
    model = build("post", **FACTORIZED, **TIES["none"])
    table, projection = model.encoder.embed_tokens.weight, model.encoder.embed_tokens.projection.weight
    assert table.std().item() == pytest.approx(FACTOR**-0.5, rel=0.2)
    most = (6 / (FACTOR + EMBED)) ** 0.5
    assert 0.9 * most < projection.abs().max().item() <= most
    assert model.encoder.embed_scale == EMBED**0.5


def test_the_embedding_of_padding_stays_zero(data_dir):
    trainer = make_trainer(data_dir, BY_NAME["cycle"], **FACTORIZED, **TIES["none"])
    embeddings = [stack.embed_tokens for stack in (trainer.model.encoder, trainer.model.decoder)]
    with torch.no_grad():
        for embedding in embeddings:
            embedding.weight[PAD] = 0  # the helper has perturbed every parameter
    before = embeddings[0].weight.detach().clone()
    train_step(trainer)
    for embedding in embeddings:
        assert not embedding(torch.tensor([PAD])).any()
    assert not torch.equal(embeddings[0].weight, before)


def test_incremental_decoding_equals_the_full_forward_pass(ties, norm):
    check_step_by_step(perturb(build(norm, sharing="cycle", unique_layers=3, **FACTORIZED, **ties)).eval(), steps=8)


def test_the_fused_loss_and_the_fast_path_update_equally(data_dir, ties):
    case = BY_NAME["cycle"]
    stock = make_trainer(data_dir, case, criterion="label_smoothed_cross_entropy", adam_eps=1e-3, **FACTORIZED, **ties)
    fused = "fused_label_smoothed_cross_entropy"
    fast = make_trainer(data_dir, case, criterion=fused, adam_eps=1e-3, fast=True, **FACTORIZED, **ties)
    for trainer in (stock, fast):
        train_step(trainer)
    ours = dict(fast.model.named_parameters())
    for name, parameter in stock.model.named_parameters():
        torch.testing.assert_close(ours[name], parameter, rtol=1e-4, atol=1e-5, msg=name)


def test_checkpoints_resume_and_average(data_dir, tmp_path, norm):
    check_checkpoint(data_dir, tmp_path, norm, FACTORIZED)


def test_a_checkpoint_contains_each_tensor_once(data_dir, tmp_path):
    trainer = make_trainer(data_dir, BY_NAME["cycle"], **FACTORIZED)
    path = save(trainer, tmp_path / "checkpoint1.pt")
    state = checkpoint_utils.load_checkpoint_to_cpu(str(path))["model"]
    assert [name for name in state if "embed_tokens" in name or ("project" in name and "layers" not in name)] == [
        "encoder.embed_tokens.weight",
        "encoder.embed_tokens.projection.weight",
    ]
    with pytest.raises(SharingError, match=r"check .*--embedding-factor-dim: size mismatch"):
        build("post", **{**BY_NAME["cycle"].options, "embedding_factor_dim": FACTOR + 1}).load_state_dict(state)


def test_language_model_computes_the_products(norm):
    tied = {"share_decoder_input_output_embed": True}
    model = perturb(build_lm(norm, **FACTORIZED, **tied)).eval()
    table = model.decoder.embed_tokens
    plain = build_lm(norm, **tied).eval()
    values = {k: v for k, v in model.state_dict().items() if ".layers." in k or "norm" in k}
    with torch.no_grad():
        for name, value in values.items():
            plain.get_parameter(name).copy_(value)
        plain.decoder.embed_tokens.weight.copy_(table.weight @ table.projection.weight.t())
    words = batch()["prev_output_tokens"]
    torch.testing.assert_close(model(words)[0], plain(words)[0], rtol=0, atol=2e-5)


def test_exported_scores_are_fairseqs(ties, norm, data_dir, tmp_path):
    exported = export_case(data_dir, tmp_path, BY_NAME["cycle"], norm, {**FACTORIZED, **ties})
    assert exported.difference.largest < 5e-5
    (tmp_path / "plain").mkdir()
    plain = export_case(data_dir, tmp_path / "plain", BY_NAME["cycle"], norm, ties)
    assert exported.tensors == plain.tensors, "tied embeddings are multiplied out once"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding_factor_dim": 0}, "^--embedding-factor-dim must be at least 1, got 0$"),
        ({"adaptive_softmax_cutoff": "10,20"}, "--adaptive-softmax-cutoff 10,20 .*--embedding-factor-dim"),
        ({"encoder_embed_path": "vectors.txt"}, "--encoder-embed-path vectors.txt .*width of the model"),
        ({"decoder_output_dim": 8}, "--decoder-output-dim 8 .*allowed: 16"),
    ],
)
def test_what_it_cannot_be_combined_with_is_named(options, message):
    with pytest.raises(SharingError, match=message):
        build("post", **{**FACTORIZED, "share_all_embeddings": False, **options})


def test_adaptive_inputs_of_a_language_model_are_refused():
    with pytest.raises(SharingError, match=r"--adaptive-input True .*--embedding-factor-dim replaces the embeddings"):
        build_lm(**FACTORIZED, adaptive_input=True, adaptive_input_cutoff="20,40")
