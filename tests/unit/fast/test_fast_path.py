"""--fast: dropout, attention and training compared with the plain path. All tests of the cases also run on it."""

from __future__ import annotations

import pytest
import torch
from fairseq.modules import MultiheadAttention
from sharing_cases import BY_NAME
from tiny_models import batch, build, build_case, make_trainer, save, train_step

from fairseq_sharing.fast import attention
from fairseq_sharing.fast.attention import FastAttention
from fairseq_sharing.fast.dropout import FastDropout, keep_mask


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
def test_dropout_keeps_the_expectation(p):
    torch.manual_seed(1)
    mask = keep_mask(torch.empty(1001, 101), p)
    dropped = mask.eq(0).float()
    deviation = (p * (1 - p) / mask.numel()) ** 0.5
    assert abs(dropped.mean() - p) < 4 * deviation
    assert mask.unique().tolist() == pytest.approx([0, 1 / (1 - p)], rel=1e-4)
    # Adjacent elements come from one draw and must be independent.
    for distance in (1, 2, 3, 4):
        both = (dropped.flatten()[:-distance] * dropped.flatten()[distance:]).mean()
        assert abs(both - p * p) < 4 * (p * p * (1 - p * p) / mask.numel()) ** 0.5


def test_dropout_of_all_and_of_none():
    x = torch.ones(5, requires_grad=True)
    assert FastDropout(0.0)(x) is x
    assert FastDropout(0.5).eval()(x) is x
    assert not FastDropout(1.0)(x).any()
    y = FastDropout(0.5)(x)
    y.sum().backward()
    assert torch.equal(x.grad, y)


def test_dropout_follows_the_seed():
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(keep_mask(torch.empty(64), 0.5))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_only_what_can_run_fast_is_replaced():
    kinds = {type(m) for m in build(fast=True).modules() if isinstance(m, MultiheadAttention)}
    assert kinds == {FastAttention}
    kinds = {type(m) for m in build().modules() if isinstance(m, MultiheadAttention)}
    assert kinds == {MultiheadAttention}
    noisy = build(fast=True, quant_noise_pq=0.1, quant_noise_pq_block_size=4)
    assert {type(m) for m in noisy.modules() if isinstance(m, MultiheadAttention)} == {MultiheadAttention}


@pytest.mark.parametrize(("name", "sets"), [("none", 6), ("cycle", 3), ("universal", 1), ("ffn_scope", 2)])
def test_layers_that_share_project_the_source_once(monkeypatch, name, sets):
    calls = []
    stock = FastAttention._project_source
    monkeypatch.setattr(FastAttention, "_project_source", lambda self, x: calls.append(1) or stock(self, x))
    model = build_case(BY_NAME[f"{name}-fast"], "pre").train()
    for forward in range(1, 3):
        model(**batch())
        assert len(calls) == forward * sets


@pytest.mark.parametrize("stored", [8, 4], ids=["stored", "recomputed"])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_bf16_equals_attention_in_fp32(monkeypatch, masked, stored):
    monkeypatch.setattr(attention, "_STORED_LENGTH", stored)
    generator = torch.Generator().manual_seed(1)
    given = [torch.randn(2, 3, length, 4, generator=generator).bfloat16() for length in (6, 8, 8)]
    mask = torch.zeros(2, 1, 1, 8)
    mask[1, ..., 5:] = float("-inf")
    output = []
    for dtype in (torch.bfloat16, torch.float32):
        q, k, v = (x.to(dtype, copy=True).requires_grad_() for x in given)
        x = attention._scaled_attention(q, k, v, mask if masked else None, 0.0)
        x.float().square().sum().backward()
        output.append([x.float(), *(y.grad.float() for y in (q, k, v))])
    torch.testing.assert_close(output[0], output[1], rtol=0.05, atol=0.05)
    if masked:
        assert not output[0][3][1, :, 5:].any()


def test_attention_dropout_in_bf16_keeps_the_expectation():
    torch.manual_seed(1)
    q, k = torch.zeros(1, 1, 64, 4).bfloat16(), torch.zeros(1, 1, 64, 4).bfloat16()
    x = attention._scaled_attention(q, k, torch.ones(1, 1, 64, 4).bfloat16(), None, 0.5)
    # Each of 64 x 64 equal probabilities is kept with probability 0.5 and doubled.
    assert x[..., 0].float().mean().item() == pytest.approx(1, abs=4 / 64)
    assert x.float().std() > 0.05


def test_fifty_updates_equal_the_plain_ones(data_dir):
    # Adam scales up gradients that are mostly rounding errors: a large epsilon keeps these small.
    settings = {"lr": 0.001, "adam_eps": 1e-3}
    plain = make_trainer(data_dir, BY_NAME["cycle_rev"], **settings)
    fused = {"optimizer": "fused_adam", "criterion": "fused_label_smoothed_cross_entropy"}
    fast = make_trainer(data_dir, BY_NAME["cycle_rev-fast"], **settings, **fused)
    for update in range(50):
        fast.model.load_state_dict(plain.model.state_dict())
        for trainer in (plain, fast):
            train_step(trainer, seed=update % 5)
        theirs = dict(plain.model.named_parameters())
        for name, parameter in fast.model.named_parameters():
            if not name.endswith("k_proj.bias"):  # it does not change the output, so its gradient is rounding error
                torch.testing.assert_close(parameter, theirs[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("plain_first", [True, False])
def test_plain_and_fast_runs_resume_each_other(data_dir, tmp_path, plain_first):
    def trainer(fast):
        prefix = "fused_" if fast else ""
        names = {"optimizer": f"{prefix}adam", "criterion": f"{prefix}label_smoothed_cross_entropy"}
        case = BY_NAME["cycle_rev-fast" if fast else "cycle_rev"]
        return make_trainer(data_dir, case, lr=0.001, adam_eps=1e-3, **names)

    whole, first, second = trainer(False), trainer(not plain_first), trainer(plain_first)
    for seed in range(4):
        train_step(whole, seed)
    for seed in (0, 1):
        train_step(first, seed)
    second.load_checkpoint(str(save(first, tmp_path / "checkpoint.pt")))
    assert second.get_num_updates() == 2
    for seed in (2, 3):
        train_step(second, seed)
    theirs = dict(whole.model.named_parameters())
    for name, parameter in second.model.named_parameters():
        if not name.endswith("k_proj.bias"):
            torch.testing.assert_close(parameter, theirs[name], rtol=0, atol=1e-5)
