"""Triton kernels for routers and rotary positions compared with torch operations."""

from __future__ import annotations

import pytest
import torch

from fairseq_sharing.moeut import rotary, routing
from fairseq_sharing.moeut.routing import Router, RouterUsage

pytest.importorskip("triton", reason="the package triton is not installed")
from fairseq_sharing.moeut import routing_kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTH, BATCH, EMBED = 70, 3, 8
SIZES = [(1, 40, 3), (4, 10, 2), (2, 4, 4)]


def draw(*shape: int, seed: int = 6) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def route(sizes: tuple[int, int, int], dropout: float = 0.0):
    """Route a batch with padding, including an empty sentence; return all results and gradients."""
    heads, experts, top_k = sizes
    router = Router(EMBED, experts, top_k, heads, dropout).to(DEVICE)
    with torch.no_grad():
        router.weight.copy_(draw(*router.weight.shape))
    x = draw(LENGTH * BATCH, EMBED, seed=7).requires_grad_()
    keep = torch.ones(LENGTH, BATCH, dtype=torch.bool, device=DEVICE)
    keep[50:, 1] = keep[:, 2] = False
    torch.manual_seed(8)
    routing_ = router(x)
    usage = RouterUsage.of(router, routing_, "ffn", keep)
    order = routing_.experts.argsort(-1)
    experts_, gates = routing_.experts.gather(-1, order), routing_.gates.gather(-1, order)
    log_mass = usage.log_mass[:2]  # without the empty sentence
    loss = (gates * draw(*gates.shape, seed=9)).sum() + (log_mass * draw(*log_mass.shape, seed=10)).sum()
    loss.backward()
    return experts_, usage.counts, usage.tokens, gates, usage.log_mass, x.grad, router.weight.grad


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("sizes", SIZES)
def test_routers_equal_torch_s_operations(sizes, dropout, monkeypatch):
    monkeypatch.setattr(routing_kernels, "_SPAN", 32)
    ours, theirs = [], []
    for kernels, results in ((True, ours), (False, theirs)):
        monkeypatch.setattr(routing, "_has_kernels", lambda logits, kernels=kernels: kernels)
        results += route(sizes, dropout)
    assert ours[1].sum() == (LENGTH + 50) * sizes[0] * sizes[2]
    for mine, its in zip(ours[:3], theirs[:3], strict=True):
        assert torch.equal(mine, its)
    assert torch.equal(ours[4][2], torch.full_like(ours[4][2], -torch.inf)), "no tokens, no mass"
    for mine, its in zip(ours[3:], theirs[3:], strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("experts", "top_k"), [(4, 2), (10, 2), (155, 12), (387, 16)])
def test_the_largest_scores_are_chosen_and_of_equal_ones_the_first(experts, top_k):
    logits, scores = draw(9, 3, experts, seed=5), draw(9, 3, experts)
    scores[0] = scores[0].round()  # creates ties
    scores[1, :, : experts // 2] = -torch.inf
    scores[2, 0] = -torch.inf
    chosen, gates = routing_kernels.choose(logits, scores, top_k)
    stable = scores.sort(dim=-1, descending=True, stable=True).indices[..., :top_k]
    assert torch.equal(chosen - experts * torch.arange(3, device=DEVICE)[:, None], stable)
    torch.testing.assert_close(gates, logits.gather(-1, stable).sigmoid())


def test_masses_of_certain_choices_are_those_of_log_space():
    logits = torch.zeros(4, 1, 5, device=DEVICE)
    logits[..., 1] = 1e4
    keep = torch.ones(2, 2, dtype=torch.bool, device=DEVICE)
    log_mass, _ = routing_kernels.mass(logits, torch.ones(4, 1, 1, dtype=torch.long, device=DEVICE), keep)
    torch.testing.assert_close(log_mass, logits.log_softmax(-1).view(2, 2, 1, 5).logsumexp(0))


@pytest.mark.parametrize("width", [0, 4, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_turning_equals_torch_s_operations(width, dtype):
    x = draw(LENGTH, BATCH, 2 * 6).to(dtype)
    x, reference = (one.requires_grad_() for one in (x, x.double()))
    cos, sin = rotary.rotation(3, LENGTH, width, DEVICE)
    results = []
    for one, turned in ((x, rotary._Rotate.apply), (reference, lambda x, *turn: rotary.rotate(x, turn))):
        y = turned(one.view(LENGTH, BATCH, 2, 6).permute(1, 2, 0, 3), cos, sin)
        (y * draw(*y.shape, seed=9)).sum().backward()
        results.append((y, one.grad))
    for mine, its in zip(*results, strict=True):
        torch.testing.assert_close(mine.double(), its.double(), rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-2)
