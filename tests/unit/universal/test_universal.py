"""The Universal Transformer's depth signal and ACT, compared with a loop over single positions in plain Python."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from sharing_cases import BY_NAME, CASES, LAYERS
from step_by_step import check_step_by_step
from tiny_models import (
    EMBED,
    PAD,
    assert_equal_models,
    assert_same_translations,
    batch,
    build,
    build_case,
    perturb,
    translate,
)

from fairseq_sharing.errors import SharingError
from fairseq_sharing.universal.depth_signal import DepthSignal

STACKS = ("encoder", "decoder")
FULL = {"act": "both", "depth_signal": "learned", "position_per_depth": True}


def universal(case, norm, **options):
    """Build the model of a case whose tokens halt after 2 to N depths."""
    model = build_case(case, norm, **options)
    generator = torch.Generator().manual_seed(8)
    for stack in STACKS:
        halting = getattr(model, stack).halting
        if halting is not None:
            with torch.no_grad():
                direction = torch.randn(EMBED, generator=generator)
                halting.weight.copy_((0.3 if norm == "post" else 0.5) * direction)
                halting.bias.fill_(-2.0)
    return model


@torch.no_grad()
def by_hand(model, inputs):
    """Run both stacks position by position.

    Returns:
        The log-probabilities (B x T x V), and for each stack the steps and remainders of each token, row by row.
    """
    spent = {}
    hidden = inputs["src_tokens"].eq(PAD)
    x = model.encoder.forward_embedding(inputs["src_tokens"])[0]
    x = (x * (~hidden).unsqueeze(-1)).transpose(0, 1)
    places = model.encoder.embed_positions(inputs["src_tokens"]).transpose(0, 1)
    memory, spent["encoder"] = walk(
        model.encoder, x, places, hidden, lambda layer, state: layer.forward(state, encoder_padding_mask=hidden)
    )
    words, decoder = inputs["prev_output_tokens"], model.decoder
    places = decoder.embed_positions(words).transpose(0, 1)
    x = (decoder.embed_scale * decoder.embed_tokens(words)).transpose(0, 1) + places
    future, ends = decoder.buffered_future_mask(x), words.eq(PAD)

    def layer_of_decoder(layer, state):
        masks = {"self_attn_mask": future, "self_attn_padding_mask": ends}
        return layer.forward(state, memory, hidden, None, **masks)[0]

    x, spent["decoder"] = walk(decoder, x, places, ends, layer_of_decoder)
    return decoder.output_layer(x.transpose(0, 1)).log_softmax(-1), spent


def walk(stack, state, places, padding, run):
    """Run the depths of a stack; compute the halting of every position with Python floats."""
    halts, epsilon = stack.halting is not None, 0.01
    length, sentences, _ = state.shape
    words = [(i, b) for i in range(length) for b in range(sentences) if not padding[b, i]]
    total, steps, remainder = (dict.fromkeys(words, 0.0) for _ in range(3))
    running = dict.fromkeys(words, True)
    mean = torch.zeros_like(state)
    for depth, layer in enumerate(stack.layers):
        entering = state.clone()
        if stack.cfg.position_per_depth and depth:
            entering += places
        if stack.depth_signal is not None:
            entering += stack.depth_signal.weight[depth]
        made = run(layer, entering)
        if not halts:
            state = made
            continue
        for word in words:
            if not running[word]:
                continue
            products = zip(stack.halting.weight.tolist(), entering[word].tolist(), strict=True)
            p = 1 / (1 + math.exp(-sum(w * s for w, s in products) - stack.halting.bias.item()))
            steps[word] += 1
            if total[word] + p >= 1 - epsilon or depth == LAYERS - 1:
                p = remainder[word] = 1 - total[word]
                running[word] = False
            total[word] += p
            mean[word] += p * made[word]
            state[word] = made[word]
    state = mean if halts else state
    if stack.layer_norm is not None:
        state = stack.layer_norm(state)
    return state, {word: (steps[word], remainder[word]) for word in words}


def assert_same_as_by_hand(model):
    inputs = batch()
    output, extra = model(**inputs)
    expected, spent = by_hand(model, inputs)
    words = inputs["prev_output_tokens"] != PAD
    ours = model.get_normalized_probs((output, extra), log_probs=True)
    torch.testing.assert_close(ours[words], expected[words], rtol=0, atol=2e-5)
    for stack, ponder in extra.get("ponder", {}).items():
        assert int(ponder.positions) == len(spent[stack])
        for word, (steps, remainder) in spent[stack].items():
            assert ponder.steps[word].item() == steps
            assert ponder.remainder[word].item() == pytest.approx(remainder, abs=1e-5)
        total = sum(steps + remainder for steps, remainder in spent[stack].values())
        assert ponder.cost.item() == pytest.approx(total, rel=1e-5)
    return spent


def test_act_equals_a_loop_over_positions(case, norm):
    spent = assert_same_as_by_hand(universal(case, norm, **FULL).eval())
    for stack in STACKS:
        depths = {int(steps) for steps, _ in spent[stack].values()}
        assert len(depths) > 2, f"{stack}: too similar for a meaningful test: {depths}"


@torch.no_grad()
def test_words_of_these_models_halt_at_every_depth_from_2_to_the_maximum(norm):
    for stack in STACKS:
        steps = [universal(case, norm, **FULL)(**batch())[1]["ponder"][stack].steps for case in CASES]
        assert set(torch.cat(steps).int().unique().tolist()) >= set(range(2, LAYERS + 1))


@pytest.mark.parametrize("act", ["encoder", "decoder", "off"])
@pytest.mark.parametrize("signal", ["sinusoidal", "learned"])
def test_each_option_by_itself_equals_the_loop(act, signal):
    model = universal(BY_NAME["cycle"], "pre", act=act, depth_signal=signal)
    assert_same_as_by_hand(model.eval())


def test_incremental_decoding_equals_the_full_forward_pass(case, norm):
    model = universal(case, norm, **FULL).eval()
    check_step_by_step(model)
    model.make_generation_fast_(beamable_mm_beam_size=None, need_attn=False)
    check_step_by_step(model, steps=8)


def test_a_halted_state_that_is_not_copied_onward_is_noticed():
    """Later depths attend to the keys and values of the copied state: without it, all other tokens change."""
    model = universal(BY_NAME["universal"], "post", **FULL).eval()
    stock = model.decoder.halting.leave
    model.decoder.halting.leave = lambda made: stock(made) * model.decoder.halting._steps_now.unsqueeze(-1)
    with pytest.raises(AssertionError):
        assert_same_as_by_hand(model)


def test_beam_search_with_a_cache_finds_what_it_finds_without(norm):
    model = universal(BY_NAME["cycle_rev"], norm, **FULL).eval()
    cached = translate([model])
    model.decoder.reorder_incremental_state_scripting = lambda *_: None
    whole = model.decoder.forward
    model.decoder.forward = lambda *words, incremental_state=None, **more: whole(*words, **more)
    assert_same_translations(cached, translate([model]))


def test_sinusoidal_signal_is_that_of_the_paper_in_fairseq_s_order():
    signal, half = DepthSignal("sinusoidal", 4, EMBED), EMBED // 2
    for depth in range(4):
        for j in range(half):
            angle = (depth + 1) / 10000 ** (j / (half - 1))
            assert signal.weight[depth, j].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert signal.weight[depth, half + j].item() == pytest.approx(math.cos(angle), abs=1e-6)
    assert not list(signal.parameters())
    assert not signal.state_dict()


def test_signal_and_halting_belong_to_the_stack_for_every_map(case):
    model, plain = build_case(case, "post", **FULL), build_case(case, "post")
    more = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in plain.parameters())
    assert more == 2 * (LAYERS * EMBED + EMBED + 1)


def test_options_off_change_nothing():
    plain, named = build(), build(depth_signal="off", act="off", position_per_depth=False)
    assert_equal_models(plain, named)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in plain.encoder.layers)
    assert "ponder" not in plain(**batch())[1]


def test_checkpoint_and_copy_keep_the_model(norm):
    model = universal(BY_NAME["sequence"], norm, **FULL).train()
    model(**batch())[0].sum().backward()
    other = perturb(build(norm, seed=4, **BY_NAME["sequence"].options, **FULL))
    other.load_state_dict(model.state_dict())
    twin = copy.deepcopy(model)
    expected = model.eval()(**batch())[0]
    assert torch.equal(other.eval()(**batch())[0], expected)
    with torch.no_grad():
        model.encoder.halting.bias.add_(9)
    assert torch.equal(twin.eval()(**batch())[0], expected), "the copy has independent steps"


def test_ponder_cost_moves_the_halting_unit_only_through_the_remainder():
    """d(cost)/d(bias) = - sum of p (1 - p) over the steps before the last: the step count has no gradient."""
    model = universal(BY_NAME["universal"], "post", act="encoder").train()
    ponder = model(**batch())[1]["ponder"]["encoder"]
    bias = model.encoder.halting.bias
    (gradient,) = torch.autograd.grad(ponder.cost, bias, retain_graph=True)
    (of_remainder,) = torch.autograd.grad(ponder.remainder.sum(), bias)
    assert gradient.item() == of_remainder.item() != 0
    assert not ponder.steps.requires_grad


def test_recomputed_activations_change_nothing():
    options = {**BY_NAME["cycle"].options, **FULL}
    plain, recomputed = build(**options), build(**options, checkpoint_activations=True)
    for model in (plain, recomputed):
        output, extra = model.train()(**batch())
        (output.square().mean() + sum(spent.cost for spent in extra["ponder"].values())).backward()
    ours = dict(recomputed.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(ours[name].grad, parameter.grad, rtol=0, atol=1e-6, msg=name)


def test_bf16_training_counts_steps_in_fp32():
    model = universal(BY_NAME["cycle"], "post", precision="bf16", **FULL).train()
    ponder = model(**batch())[1]["ponder"]
    assert all(spent.remainder.dtype == torch.float32 for spent in ponder.values())


REFUSED = [
    ({"encoder_layerdrop": 0.1}, "--encoder-layerdrop 0.1 cannot be combined with this model: --act counts"),
    ({"decoder_layers_to_keep": "0,1"}, "--decoder-layers-to-keep 0,1 cannot be combined with this model: --act and"),
    ({"base_layers": 1}, "--base-layers 1 cannot be combined with this model: expert layers"),
    ({"admin": "profile"}, "--admin profile cannot be combined with this model: it measures the variances"),
    ({"act_epsilon": 0.0}, "--act-epsilon must be between 0 and 1, got 0.0"),
    ({"criterion": "cross_entropy"}, "--criterion cross_entropy has no ponder cost, so every token"),
    ({"decoder_layers": 1}, "--act both requires --decoder-layers of at least 2, got 1"),
    ({"no_token_positional_embeddings": True}, "--no-token-positional-embeddings True cannot be combined with"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[next(iter(row[0])) for row in REFUSED])
def test_what_it_cannot_be_combined_with_is_named_in_one_line(options, message):
    with pytest.raises(SharingError) as caught:
        build(**FULL, **options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_language_model_halts_too():
    sizes = {"decoder_layers": LAYERS, "decoder_embed_dim": EMBED, "decoder_ffn_embed_dim": 32}
    sizes.update(decoder_attention_heads=2, tokens_per_sample=32, sharing="universal", act="decoder")
    model = build(arch="transformer_lm_sharing", share_all_embeddings=None, **sizes)
    words = batch()["prev_output_tokens"]
    ponder = model(words)[1]["ponder"]["decoder"]
    assert int(ponder.positions) == int((words != PAD).sum())
    with pytest.raises(SharingError, match="--act encoder: this model has no encoder; allowed: off, decoder"):
        build(arch="transformer_lm_sharing", share_all_embeddings=None, **{**sizes, "act": "encoder"})


def test_cases_cover_every_strategy():
    assert {"none", "universal", "sequence", "cycle", "cycle_rev", "sandwich", "custom"} <= {c.name for c in CASES}
