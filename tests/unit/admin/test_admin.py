"""Admin: residual weights per depth, set from the first training batch, never shared."""

from __future__ import annotations

import math

import pytest
import torch
from sharing_cases import CASES, LAYERS
from step_by_step import check_step_by_step
from tiny_models import EMBED, batch, build, perturb

from fairseq_sharing.errors import SharingError

STACKS = ("encoder", "decoder")


def var(x):
    """Compute the variance over all elements of a batch."""
    return x.var(unbiased=False).item()


@torch.no_grad()
def scalar_profile(model, inputs):
    """Compute the sub-layers of both stacks explicitly, with dropout 0; return r of each sub-layer."""
    weights = {"encoder": [], "decoder": []}
    padding = inputs["src_tokens"].eq(1)

    def sublayer(stack, x, made, norm, r):
        weights[stack].append(r)
        return norm(x * r + made), math.sqrt(var(x * r) + var(made))

    x, r = model.encoder.forward_embedding(inputs["src_tokens"])[0], 1.0
    x = (x * (~padding).unsqueeze(-1)).transpose(0, 1)
    for layer in model.encoder.layers:
        made = layer.self_attn(x, x, x, key_padding_mask=padding, need_weights=False)[0]
        x, r = sublayer("encoder", x, made, layer.self_attn_layer_norm, r)
        x, r = sublayer("encoder", x, layer.fc2(torch.relu(layer.fc1(x))), layer.final_layer_norm, r)
    memory, decoder, words = x, model.decoder, inputs["prev_output_tokens"]
    x = decoder.embed_scale * decoder.embed_tokens(words) + decoder.embed_positions(words)
    x, r = x.transpose(0, 1), 1.0
    future = decoder.buffered_future_mask(x)
    hidden = words.eq(1)
    for layer in decoder.layers:
        made = layer.self_attn(x, x, x, key_padding_mask=hidden, attn_mask=future, need_weights=False)[0]
        x, r = sublayer("decoder", x, made, layer.self_attn_layer_norm, r)
        made = layer.encoder_attn(x, memory, memory, key_padding_mask=padding, static_kv=True)[0]
        x, r = sublayer("decoder", x, made, layer.encoder_attn_layer_norm, r)
        x, r = sublayer("decoder", x, layer.fc2(torch.relu(layer.fc1(x))), layer.final_layer_norm, r)
    return weights


def measured(model):
    return {
        stack: [row.tolist() for layer in getattr(model, stack).layers for row in layer.residual_weight]
        for stack in STACKS
    }


@pytest.fixture
def model(case):
    return perturb(build("post", admin="profile", **case.options))


def test_profile_equals_a_walk_by_hand(case):
    model = build("post", admin="profile", **case.options).train()
    expected = scalar_profile(model, batch())
    model(**batch())
    for stack, rows in measured(model).items():
        assert len(rows) == len(expected[stack]) == LAYERS * (2 if stack == "encoder" else 3)
        for row, r in zip(rows, expected[stack], strict=True):
            assert row == pytest.approx([r] * EMBED, rel=1e-5)


def test_weights_belong_to_the_depth_for_every_map(case, model):
    for stack in STACKS:
        layers = getattr(model, stack).layers
        assert len({id(layer.residual_weight) for layer in layers}) == LAYERS
        names = [name for name in model.state_dict() if name.startswith(stack) and name.endswith("residual_weight")]
        assert len(names) == LAYERS


def test_only_the_first_training_batch_is_measured():
    model = build("post", sharing="universal", admin="profile")
    model.eval()
    model(**batch())
    assert model.admin_pending
    model.train()
    model(**batch())
    first = measured(model)
    model(**batch(seed=9))
    assert measured(model) == first
    assert not model.admin_pending


def test_weights_of_one_change_nothing():
    plain = perturb(build("post", sharing="cycle", unique_layers=3)).eval()
    admin = build("post", sharing="cycle", unique_layers=3, admin="profile").eval()
    state = {k: v for k, v in plain.state_dict().items() if k != "_extra_state"}
    missing = admin.load_state_dict({**admin.state_dict(), **state}, strict=True)
    assert not missing.missing_keys
    assert torch.equal(plain(**batch())[0], admin(**batch())[0])


def test_incremental_decoding_equals_the_full_forward_pass(model):
    check_step_by_step(model.eval())


def test_a_loaded_model_is_not_measured_again():
    trained = build("post", sharing="sequence", unique_layers=2, admin="profile").train()
    trained(**batch())
    loaded = build("post", sharing="sequence", unique_layers=2, admin="profile", seed=4).train()
    loaded.load_state_dict(trained.state_dict())
    loaded(**batch(seed=8))
    assert measured(loaded) == measured(trained)


def test_a_model_saved_before_its_first_batch_still_waits_for_it():
    saved = build("post", admin="profile").state_dict()
    loaded = build("post", admin="profile")
    loaded.load_state_dict(saved)
    assert loaded.admin_pending


def test_weights_are_trained_from_the_measured_value():
    model = build("post", sharing="cycle_rev", unique_layers=3, admin="profile").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model(**batch())[0].square().sum().backward()
    start = [layer.residual_weight.detach().clone() for layer in model.decoder.layers]
    optimizer.step()
    for layer, before in zip(model.decoder.layers, start, strict=True):
        assert layer.residual_weight.grad.abs().max() > 0
        torch.testing.assert_close(layer.residual_weight, before - 0.01 * layer.residual_weight.grad)


def test_activation_checkpointing_changes_nothing():
    plain = build("post", sharing="cycle", unique_layers=3, admin="profile").train()
    recomputed = build("post", sharing="cycle", unique_layers=3, admin="profile", checkpoint_activations=True).train()
    for model in (plain, recomputed):
        model(**batch())[0].square().mean().backward()
    ours = dict(recomputed.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(ours[name].grad, parameter.grad, rtol=0, atol=1e-6, msg=name)


def test_closed_form_is_the_root_of_the_sublayer():
    model = build("post", sharing="universal", admin="closed_form")
    for stack, rows in measured(model).items():
        for number, row in enumerate(rows, start=1):
            assert row == pytest.approx([math.sqrt(number)] * EMBED), (stack, number)


@pytest.mark.parametrize("option", [{"norm": "pre"}, {"fp16": True}, {"bf16": True}])
def test_what_admin_cannot_be_combined_with_is_named(option):
    flag = "normalize-before" if "norm" in option else next(iter(option))
    with pytest.raises(SharingError, match=flag):
        build(**{"norm": "post", **option}, admin="profile")


def test_cases_cover_every_strategy():
    assert {"none", "universal", "sequence", "cycle", "cycle_rev", "sandwich", "custom"} <= {c.name for c in CASES}


def test_a_pass_that_ends_early_leaves_nothing_behind(monkeypatch):
    model = perturb(build("post", admin="closed_form")).train()
    before = model(**batch())[0]
    layer = model.encoder.layers[1]
    with monkeypatch.context() as patch:
        patch.setattr(layer.fc1, "forward", lambda _x: (_ for _ in ()).throw(RuntimeError("out of memory")))
        with pytest.raises(RuntimeError, match="out of memory"):
            model(**batch())
    assert torch.equal(model(**batch())[0], before)
