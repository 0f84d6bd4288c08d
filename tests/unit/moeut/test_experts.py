"""Expert banks: all backends equal a sum over experts, forward and backward, and are bitwise reproducible."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fairseq_sharing.errors import SharingError
from fairseq_sharing.moeut import experts
from fairseq_sharing.moeut.experts import (
    BACKENDS,
    Dispatch,
    ExpertOptions,
    choose_backend,
    expert_linear,
)
from fairseq_sharing.moeut.kernels import has_kernels
from fairseq_sharing.moeut.sigma_moe import SigmaMoE
from fairseq_sharing.moeut.switch_head import SwitchHead

NO_KERNELS = pytest.mark.skipif(not has_kernels("cpu"), reason="the package triton is not installed")
ALL = [pytest.param(name, marks=NO_KERNELS) if name == "triton" else name for name in BACKENDS]
# (input rows, output rows) per token, as for values, outputs and both sides of a feed-forward layer.
ROWS = [(1, 2), (2, 1), (1, 4), (4, 1)]
# Gates are applied on the narrower side of a bank.
SIZES = [(12, 8), (8, 12)]
TOKENS, PAIRS, NUM = 7, 4, 6


def choices(kind: str) -> torch.Tensor:
    """Choose four experts per token: any except for expert 5, always the same four, or no tokens."""
    generator = torch.Generator().manual_seed(4)
    if kind == "same":
        return torch.tensor([[3, 0, 1, 2]]).repeat(TOKENS, 1)
    tokens = 0 if kind == "no token" else TOKENS
    picks = [torch.randperm(NUM - 1, generator=generator)[:PAIRS] for _ in range(tokens)]
    return torch.stack(picks) if picks else torch.zeros(0, PAIRS, dtype=torch.long)


def run(backend, rows, ids, *, kept=False, gated=True, sizes=(12, 8), dtype=torch.float32):
    """Return the output and gradients of one call."""
    generator = torch.Generator().manual_seed(9)
    inputs, outputs = rows

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

    x, weight, gates = draw(len(ids) * inputs, sizes[0]), draw(NUM, *sizes), draw(len(ids), PAIRS)
    dispatch = Dispatch(ids, NUM)
    given = gates if gated else None
    y = expert_linear(x, weight, dispatch, given, outputs=outputs, backend=backend, keep_gathered=kept)
    (y * torch.linspace(-1, 1, y.numel(), dtype=dtype).view_as(y)).sum().backward()
    return [y.detach(), x.grad, weight.grad, *([gates.grad] if gated else [])]


def by_loops(rows, ids, sizes):
    """Compute the same output by the definition."""
    generator = torch.Generator().manual_seed(9)
    inputs, outputs = rows
    x = torch.randn(len(ids) * inputs, sizes[0], generator=generator).view(len(ids), inputs, sizes[0])
    weight = torch.randn(NUM, *sizes, generator=generator)
    gates = torch.randn(len(ids), PAIRS, generator=generator)
    y = torch.zeros(len(ids), outputs, sizes[1])
    for t, chosen in enumerate(ids.tolist()):
        for p, expert in enumerate(chosen):
            y[t, p // (PAIRS // outputs)] += gates[t, p] * (x[t, p // (PAIRS // inputs)] @ weight[expert])
    return y.flatten(0, 1)


@pytest.mark.parametrize("kind", ["some", "same", "no token"])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("backend", ALL[1:])
def test_back_ends_equal_the_definition_and_each_other(backend, rows, kind, sizes):
    ids = choices(kind)
    for gated in (True, False):
        oracle = run("dense", rows, ids, gated=gated, sizes=sizes)
        if gated:
            torch.testing.assert_close(oracle[0], by_loops(rows, ids, sizes), rtol=0, atol=1e-5)
        for kept in (False, True) if backend != "triton" else (False,):
            for ours, theirs in zip(run(backend, rows, ids, kept=kept, gated=gated, sizes=sizes), oracle, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("sizes", "dtype"), [((13, 7), torch.float32), ((12, 6), torch.bfloat16)])
@pytest.mark.parametrize("rows", ROWS[:2])
def test_sizes_that_are_no_multiple_of_16_bytes_are_filled_up(rows, sizes, dtype):
    """torch's grouped product rejects such sizes, for example 412 channels in bf16."""
    oracle = run("loop", rows, choices("some"), sizes=sizes, dtype=dtype)
    for ours, theirs in zip(run("grouped", rows, choices("some"), sizes=sizes, dtype=dtype), oracle, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-4)
    bank = torch.randn(NUM, *sizes, dtype=dtype)
    with pytest.raises(RuntimeError, match="multiple of 16"):
        F.grouped_mm(torch.randn(4, sizes[0], dtype=dtype), bank, offs=torch.full((NUM,), 4, dtype=torch.int32))


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("deterministic", [True, False])
def test_equal_inputs_give_equal_bits_with_and_without_deterministic_mode(deterministic, backend):
    torch.use_deterministic_algorithms(deterministic)
    try:
        first, second = (run(backend, (1, 2), choices("some")) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", ["dense", "loop"])
@pytest.mark.parametrize("rows", ROWS[:2])
@pytest.mark.parametrize("sizes", [(3, 2), (2, 3)])
def test_gradients_equal_finite_differences(backend, rows, sizes):
    generator = torch.Generator().manual_seed(2)
    ids = choices("some")[:3]
    shapes = (len(ids) * rows[0], sizes[0]), (NUM, *sizes), (len(ids), PAIRS)
    tensors = [torch.randn(*s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]

    def call(x, weight, gates):
        return expert_linear(x, weight, Dispatch(ids, NUM), gates, outputs=rows[1], backend=backend)

    assert torch.autograd.gradcheck(call, tensors, fast_mode=True)


def test_gathered_inputs_are_kept_only_when_asked():
    """Keeping gathered inputs costs K = 4 pairs of 12 numbers per token and nothing else."""

    def saved(kept):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            run("grouped", (1, 2), choices("some"), kept=kept)
        return sum(sizes)

    assert saved(True) - saved(False) == TOKENS * PAIRS * 12


def test_the_bank_is_cast_once_and_not_kept_in_bf16():
    weight = torch.randn(NUM, 12, 8, requires_grad=True)
    kept = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        y = expert_linear(torch.randn(TOKENS, 12), weight, Dispatch(choices("some"), NUM), outputs=2, backend="loop")
    assert y.dtype == torch.bfloat16
    assert {t.dtype for t in kept if t.numel() == weight.numel()} == {torch.float32}


@pytest.mark.parametrize("kernels", [True, False])
def test_the_back_end_is_chosen_by_device_bank_and_batch(kernels, monkeypatch):
    monkeypatch.setattr(experts, "has_kernels", lambda device_type: kernels)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_backend(cpu, (8, 128, 32), 40, 4, torch.float32) == "dense"
    assert choose_backend(cpu, (8, 128, 32), 1024, 4, torch.float32) == "grouped"
    assert choose_backend(cpu, (155, 412, 128), 1024, 12, torch.float32) == "grouped"
    assert choose_backend(cpu, (155, 412, 128), 1024, 12, torch.bfloat16) == "loop"
    assert choose_backend(cuda, (40, 1024, 128), 8192, 8, torch.bfloat16) == "dense"
    assert choose_backend(cuda, (40, 1024, 128), 32_768, 8, torch.bfloat16) == ("triton" if kernels else "dense")
    assert choose_backend(cuda, (32, 412, 82), 65_536, 8, torch.bfloat16) == "dense"
    assert choose_backend(cuda, (155, 412, 128), 8192, 12, torch.bfloat16) == ("triton" if kernels else "grouped")
    assert choose_backend(cuda, (40, 1024, 128), 65_536, 8, torch.float32) == "dense"
    assert choose_backend(cuda, (40, 1024, 128), 65_536, 8, torch.bfloat16) == ("triton" if kernels else "dense")
    assert choose_backend(cuda, (387, 1024, 128), 8192, 16, torch.bfloat16) == ("triton" if kernels else "grouped")
    assert choose_backend(cuda, (387, 1024, 128), 8192, 16, torch.float32) == "grouped"


def test_kernels_that_cannot_run_are_refused_by_the_flag(monkeypatch):
    monkeypatch.setattr(experts, "has_kernels", lambda device_type: False)
    with pytest.raises(SharingError, match=r"^--expert-backend triton requires .*; allowed on cpu: auto, "):
        run("triton", (1, 2), choices("some"))


@pytest.mark.parametrize("backend", ALL)
def test_a_feed_forward_layer_of_all_experts_is_a_dense_one(backend):
    torch.manual_seed(3)
    bank = SigmaMoE(16, 5, 5, 8, 1.0, ExpertOptions(backend=backend))
    x, normalized = torch.randn(9, 16), torch.randn(9, 16)
    gates = (normalized @ bank.router.weight.t()).sigmoid()
    hidden = (x @ bank.up.transpose(0, 1).flatten(1)).relu()
    wide = (hidden.view(9, 5, 8) * gates[..., None]).flatten(1) @ bank.down.flatten(0, 1)
    torch.testing.assert_close(bank(normalized, x)[0], wide, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", ALL)
def test_attention_by_all_experts_with_gates_of_one_is_ordinary_attention(backend, monkeypatch):
    torch.manual_seed(3)
    attention = SwitchHead(16, 2, 8, 3, 3, 1.0, 0.0, ExpertOptions(backend=backend))
    monkeypatch.setattr(torch.Tensor, "sigmoid", lambda logits: torch.ones_like(logits))
    x = torch.randn(5, 2, 16)
    y, _ = attention(x, attention.attended(x, x)[0], causal=True)
    heads = []
    for head in range(2):
        mine, part = slice(3 * head, 3 * head + 3), slice(8 * head, 8 * head + 8)
        queries, keys = (x @ proj.weight[part].t() for proj in (attention.q_proj, attention.k_proj))
        values = x @ attention.value_experts[mine].sum(0)
        scores = torch.einsum("tbd,sbd->bts", queries, keys) / 8**0.5
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf).softmax(-1)
        heads.append(torch.einsum("bts,sbd->tbd", scores, values) @ attention.output_experts[mine].sum(0))
    torch.testing.assert_close(y, sum(heads), rtol=0, atol=1e-5)


def test_task_gradients_reach_chosen_experts_only():
    torch.manual_seed(5)
    bank = SigmaMoE(16, 8, 2, 32, 1.0, ExpertOptions())  # wide, so that no expert has only inactive ReLUs
    x = torch.randn(3, 16)
    z, routing = bank(x, x)
    z.square().sum().backward()
    chosen = torch.zeros(8, dtype=torch.bool)
    chosen[routing.experts.flatten()] = True
    assert 0 < chosen.sum() < 8
    for grad in (bank.up.grad, bank.down.grad, bank.router.weight.grad):
        reached = grad.flatten(1).abs().sum(1) > 0
        assert torch.equal(reached, chosen)


def test_an_unknown_device_dtype_falls_to_the_loop():
    """grouped_mm does not support fp64, which finite differences require."""
    ids = choices("some")
    ours, theirs = (run(backend, (1, 2), ids, dtype=torch.float64) for backend in ("grouped", "loop"))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert experts.BACKENDS == ("dense", "loop", "grouped", "triton")
