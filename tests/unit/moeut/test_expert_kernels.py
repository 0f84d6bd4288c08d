"""Triton kernels with several programs; tests/unit/moeut/test_experts.py tests them at small sizes."""

from __future__ import annotations

import pytest
import torch

from fairseq_sharing.moeut.experts import Dispatch, expert_linear

pytest.importorskip("triton", reason="the package triton is not installed")
from fairseq_sharing.moeut.expert_kernels import TILE

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOKENS, PAIRS, EXPERTS = 300, 2, 4
ON_GPU = pytest.mark.skipif(DEVICE == "cpu", reason="Triton's interpreter cannot multiply in bf16")
PRECISIONS = [(torch.float32, 1e-5), (torch.float16, 1e-2), pytest.param(torch.bfloat16, 1e-2, marks=ON_GPU)]


def choices() -> torch.Tensor:
    """Choose two experts per token: more than two tiles of expert 0, a few of expert 1, none of expert 3."""
    second = torch.where(torch.arange(TOKENS) % 3 == 0, 1, 2)
    return torch.stack([torch.zeros(TOKENS, dtype=torch.long), second], 1).to(DEVICE)


def run(backend, rows, sizes, dtype):
    """Return the output and gradients of one call."""
    generator = torch.Generator().manual_seed(5)
    inputs, outputs = rows

    def draw(*shape, scale=1.0):
        return (torch.randn(*shape, generator=generator) * scale).to(DEVICE, dtype).requires_grad_()

    x, weight = draw(TOKENS * inputs, sizes[0]), draw(EXPERTS, *sizes, scale=sizes[0] ** -0.5)
    gates = draw(TOKENS, PAIRS)
    y = expert_linear(x, weight, Dispatch(choices(), EXPERTS), gates, outputs=outputs, backend=backend)
    (y * torch.linspace(-1, 1, y.numel(), device=DEVICE, dtype=dtype).view_as(y)).sum().backward()
    return y.detach(), x.grad, weight.grad, gates.grad


@pytest.mark.parametrize("sizes", [(140, 70), (256, 128)], ids=["uneven", "even"])
@pytest.mark.parametrize("rows", [(1, 2), (2, 1)])
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_banks_of_several_tiles_equal_the_loop(rows, sizes, dtype, tolerance):
    """Products with a large inner dimension have few columns, those with a small one many, forward and backward."""
    sizes = sizes if rows == (1, 2) else sizes[::-1]
    assert choices().flatten().bincount().max() > 2 * TILE
    for ours, theirs in zip(run("triton", rows, sizes, dtype), run("loop", rows, sizes, dtype), strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


def test_tiles_cover_every_pair_once():
    dispatch = Dispatch(choices(), EXPERTS)
    covered = []
    for expert, start in zip(*(part.tolist() for part in dispatch.tiles), strict=True):
        if expert >= 0:
            covered += [(expert, place) for place in range(start, min(start + TILE, int(dispatch.ends[expert])))]
    assert [place for _, place in covered] == list(range(TOKENS * PAIRS))
    assert [expert for expert, _ in covered] == choices().flatten()[dispatch.order].tolist()
