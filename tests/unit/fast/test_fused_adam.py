"""The fused Adam compared with fairseq's."""

from __future__ import annotations

import copy

import pytest
import torch
from fairseq.optim.adam import Adam, FairseqAdam

from fairseq_sharing.fast.fused_adam import FusedFairseqAdam, _FusedAdam


def parameters(dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in ((5, 3), (7,), (2, 2, 2))]


def set_gradients(params, seed, skip=None):
    generator = torch.Generator().manual_seed(seed)
    for number, p in enumerate(params):
        # For tiny gradients, epsilon and its position in the formula matter.
        p.grad = None if number == skip else torch.randn(p.shape, generator=generator).mul(1e-4).to(p.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_updates_equal_fairseq_s(weight_decay, dtype):
    options = {"lr": 0.01, "betas": (0.9, 0.98), "eps": 1e-4, "weight_decay": weight_decay}
    theirs, ours = parameters(dtype), parameters(dtype)
    stock, fused = Adam(theirs, **options), _FusedAdam(ours, **options)
    for update in range(20):
        for params, optimizer in ((theirs, stock), (ours, fused)):
            set_gradients(params, update, skip=1 if update < 3 else None)
            optimizer.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert [fused.state[p]["step"] for p in ours] == [20, 17, 20]


def test_either_resumes_from_the_other_s_state():
    for first, second in ((Adam, _FusedAdam), (_FusedAdam, Adam)):
        params = parameters()
        one = first(params)
        set_gradients(params, 0)
        one.step()
        others = copy.deepcopy(params)
        other = second(others)
        other.load_state_dict(copy.deepcopy(one.state_dict()))
        for group, optimizer in ((params, one), (others, other)):
            set_gradients(group, 1)
            optimizer.step()
        torch.testing.assert_close(others, params, rtol=1e-5, atol=1e-7)


def test_a_resumed_run_takes_both_for_one():
    assert FusedFairseqAdam.__name__ == FairseqAdam.__name__
