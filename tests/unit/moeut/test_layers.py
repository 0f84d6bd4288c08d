"""MoEUT's layer and stacks: the paper's equations and their consequences."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from moeut_models import SIZES, build_moeut, layer, layer_by_loops, step
from tiny_models import EMBED, EOS, PAD, VOCABULARY, perturb

from fairseq_sharing.moeut.dense_layer import DenseLayer, DenseSizes
from fairseq_sharing.moeut.experts import ExpertOptions
from fairseq_sharing.moeut.peri_layer import PeriLayer
from fairseq_sharing.moeut.rotary import default_width, rotate, rotation
from fairseq_sharing.moeut.routing import Router
from fairseq_sharing.moeut.sigma_moe import SigmaMoE
from fairseq_sharing.moeut.switch_head import SwitchHead

LM = "transformer_lm_moeut"


def draw(*shape, seed=3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_a_layer_equals_its_equations_in_loops():
    module, x = layer(), draw(6, 2, EMBED)
    y, _, _ = module(x, step(6, 2))
    for sentence in range(2):
        expected = layer_by_loops(module, x[:, sentence].double())
        torch.testing.assert_close(y[:, sentence].double(), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_dense_baseline_equals_fairseq_s_pre_norm_layer_without_positions():
    from fairseq.models.transformer import TransformerConfig, transformer_legacy
    from fairseq.modules.transformer_layer import TransformerDecoderLayerBase
    from tiny_models import FFN, arguments

    args = arguments("pre", dropout=0.0)
    transformer_legacy.base_architecture(args)
    stock = perturb(TransformerDecoderLayerBase(TransformerConfig.from_namespace(args), no_encoder_attn=True)).eval()
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        stock.self_attn.get_submodule(name).bias.zero_()
    ours = DenseLayer(DenseSizes(EMBED, 2, EMBED // 2, FFN, 0), 4).eval()
    ours.load_state_dict({k: v for k, v in stock.state_dict().items() if not ("self_attn." in k and "bias" in k)})
    x = draw(5, 3, EMBED)
    mask = torch.full((5, 5), -torch.inf).triu(1)
    theirs = stock(x, self_attn_mask=mask)[0]
    without_positions = replace(step(5, 3), turn=rotation(0, 5, 0))
    torch.testing.assert_close(ours(x, without_positions)[0], theirs, rtol=0, atol=1e-5)


def test_rotary_scores_depend_on_distances_only():
    x, y = draw(8), draw(8, seed=4)
    scores = torch.stack(
        [rotate(x[None], rotation(i, 1, 4)) @ rotate(y[None], rotation(i + 3, 1, 4)).t() for i in (0, 5, 90)]
    )
    torch.testing.assert_close(scores, scores[:1].expand_as(scores), rtol=0, atol=1e-5)
    assert torch.equal(rotate(x[None], rotation(7, 1, 4))[0, 4:], x[4:]), "the other channels are not rotated"
    assert [default_width(width) for width in (82, 128, 96, 41)] == [40, 64, 48, 20]


@torch.no_grad()
def test_permuting_tokens_permutes_the_output():
    module, x = layer(), draw(6, 2, EMBED)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    tokens = x.flatten(0, 1)
    permuted = module.ffn(tokens[order], tokens[order])[0]
    torch.testing.assert_close(permuted, module.ffn(tokens, tokens)[0][order], rtol=0, atol=1e-6)
    free = replace(step(6, 2, causal=False), turn=rotation(0, 6, 0))
    permuted = module(x[order], free)[0]
    torch.testing.assert_close(permuted, module(x, free)[0][order], rtol=0, atol=1e-6)


@torch.no_grad()
def test_other_sentences_of_a_batch_change_nothing():
    module, x = layer(), draw(6, 4, EMBED)
    torch.testing.assert_close(module(x, step(6, 4))[0][:, 1:2], module(x[:, 1:2], step(6, 1))[0], rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(("factor", "tolerance"), [(3, 1e-5), (50, 1e-5), (0.1, 1e-4)])
def test_a_stack_scales_with_its_input(factor, tolerance):
    """The residual path has no LayerNorm, bias or other nonlinearity. LayerNorm's eps matters at small scales."""
    stack = [layer(seed).double() for seed in (1, 2)] * 3
    x = 10 * draw(5, 2, EMBED).double()

    def run(x):
        for module in stack:
            x = module(x, step(5, 2))[0]
        return x

    whole, scaled = run(x), run(factor * x) / factor
    assert (whole - scaled).abs().max() / whole.abs().max() < tolerance


@torch.no_grad()
def test_the_future_changes_nothing():
    model = perturb(build_moeut(LM, sharing="cycle", unique_layers=2)).eval()
    tokens = torch.randint(4, VOCABULARY, (2, 8), generator=torch.Generator().manual_seed(1))
    later = tokens.clone()
    later[:, 5:] = torch.tensor([9, 4, 7])
    before, after = model(tokens)[0], model(later)[0]
    torch.testing.assert_close(before[:, :5], after[:, :5], rtol=0, atol=1e-5)
    assert (before[:, 5:] - after[:, 5:]).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side):
    model = perturb(build_moeut(LM, sharing="cycle", unique_layers=2)).eval()
    tokens = torch.randint(4, VOCABULARY, (1, 6), generator=torch.Generator().manual_seed(1))
    tokens[0, 0] = EOS
    pad = torch.full((1, 3), PAD)
    padded = torch.cat([pad, tokens] if side == "left" else [tokens, pad], 1)
    batch = torch.cat([padded, torch.randint(4, VOCABULARY, (1, 9))])
    words = slice(3, None) if side == "left" else slice(None, 6)
    alone, alone_usage = model(tokens, return_usage=True)
    among, usage = model(batch, return_usage=True)
    torch.testing.assert_close(among[:1, words], alone, rtol=0, atol=1e-5)
    for ours, theirs in zip(usage["usage"]["decoder"], alone_usage["usage"]["decoder"], strict=True):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one.log_mass[:1], other.log_mass, rtol=0, atol=1e-5)
            assert one.tokens.tolist() == [6, 9]
            assert one.counts.sum() == 15 / 6 * other.counts.sum()


def test_initial_standard_deviations_are_the_paper_s():
    depth, sizes = 18, replace(SIZES, embed_dim=256, head_dim=64, ffn_experts=20, expert_dim=32)
    torch.manual_seed(0)
    for normalized in (False, True):
        module = PeriLayer(sizes, depth, options=ExpertOptions(normalized_banks=normalized))
        a = math.sqrt(2 / depth)
        attention, ffn = module.self_attn, module.ffn
        expected = {
            attention.q_proj.weight: a / 16,
            attention.k_proj.weight: a / 16,
            attention.value_experts: a / 16,
            attention.value_router.weight: a / 16,
            attention.output_router.weight: a / 16,
            attention.output_experts: a / math.sqrt(2 * 64),
            ffn.router.weight: a / 16,
            ffn.up: a / 16,
            ffn.down: a / math.sqrt(20 * 32),
        }
        for weight, std in expected.items():
            assert weight.std().item() == pytest.approx(std, rel=0.04)
    norms = attention.value_experts.norm(dim=0)
    torch.testing.assert_close(norms, norms[:1, :1].expand_as(norms), rtol=1e-4, atol=0)
    cross = PeriLayer(sizes, depth, cross_attention=True)
    assert cross.ffn.up.std().item() == pytest.approx(math.sqrt(4 / (3 * depth)) / 16, rel=0.04)


def test_router_rows_have_equal_lengths_on_request():
    router = Router(256, 20, 2)
    router.reset(0.05, equal_rows=True)
    torch.testing.assert_close(router.weight.norm(dim=1), torch.full((20,), 0.8), rtol=1e-5, atol=0)


@torch.no_grad()
def test_the_stream_keeps_its_length_at_the_start():
    torch.manual_seed(0)
    sizes = replace(SIZES, embed_dim=256, head_dim=64, ffn_experts=20, expert_dim=32)
    unique = [PeriLayer(sizes, 18), PeriLayer(sizes, 18)]
    x = draw(32, 2, 256) / 16
    start = x.norm()
    for module in unique * 9:
        x = module(x, step(32, 2))[0]
    assert x.norm() / start == pytest.approx(1, abs=0.1)


def test_an_expert_that_is_dropped_is_not_chosen_and_gates_stay_what_they_are():
    torch.manual_seed(0)
    router = perturb(Router(EMBED, 6, 2, dropout=0.9))
    x = draw(200, EMBED)
    dropped, plain = router.train()(x), router.eval()(x)
    assert not torch.equal(dropped.experts, plain.experts)
    assert torch.equal(dropped.gates, plain.logits.gather(-1, dropped.experts).sigmoid())
    assert dropped.gates.isfinite().all(), "even if fewer than two experts are left"


@torch.no_grad()
def test_bf16_chooses_the_experts_of_fp32():
    """Routers compute in fp32: only the bf16 rounding of their inputs differs."""
    router = perturb(Router(EMBED, 40, 8))
    x = draw(500, EMBED)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routing = router(x)
    assert routing.logits.dtype == torch.float32
    assert torch.equal(routing.experts, router(x).experts)
    module = layer()
    small = draw(4, 1, EMBED)
    exact = module(small, step(4, 1, count=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = module(small, step(4, 1, count=True))
    assert torch.equal(exact[2][0].counts, rounded[2][0].counts), "the first router of a layer reads the same"
    assert (exact[0] - rounded[0]).abs().max() < 0.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_a_router_s_map_are_made_in_the_precision_of_training(dtype):
    router, x, dlogits = Router(EMBED, 40, 8), draw(50, EMBED).requires_grad_(), draw(50, 1, 40, seed=4)
    router.reset(1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits = router(x).logits
    logits.backward(dlogits)
    given = dlogits[:, 0].to(dtype)
    assert torch.equal(x.grad, (given @ router.weight.to(dtype)).float())
    assert torch.equal(router.weight.grad, (given.t() @ x.to(dtype)).float())


@pytest.mark.parametrize("recompute", [False, True])
def test_dropout_and_recomputed_activations_give_equal_bits_again(recompute):
    model = build_moeut(LM, sharing="cycle", unique_layers=2, dropout=0.2, checkpoint_activations=recompute).train()
    tokens = torch.randint(4, VOCABULARY, (2, 8), generator=torch.Generator().manual_seed(1))
    gradients = []
    for _ in range(2):
        model.zero_grad()
        torch.manual_seed(2)
        scores, extra = model(tokens, return_usage=True)
        (
            scores.square().mean() + sum(one.log_mass.sum() for used in extra["usage"]["decoder"] for one in used)
        ).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    if recompute:
        model.cfg.checkpoint_activations = False
        model.zero_grad()
        torch.manual_seed(2)
        scores, extra = model(tokens, return_usage=True)
        (
            scores.square().mean() + sum(one.log_mass.sum() for used in extra["usage"]["decoder"] for one in used)
        ).backward()
        for parameter, recomputed in zip(model.parameters(), gradients[0], strict=True):
            torch.testing.assert_close(parameter.grad, recomputed, rtol=1e-5, atol=1e-7)


def test_a_layer_has_the_modules_that_banks_are_counted_by():
    kinds = {type(module) for module in layer(cross_attention=True).modules()}
    assert {SigmaMoE, SwitchHead, Router} <= kinds
