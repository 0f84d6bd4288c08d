"""Output projection fused with the label-smoothed loss, without storing a batch's scores of the vocabulary."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fairseq_sharing.fast.precision import product_dtype

# Scores of the vocabulary are computed for one chunk of positions at a time. Larger chunks are faster, since each
# adds to the gradient of the whole weight.
_CHUNK_BYTES = 1 << 28
# On a CPU, operations on scores run on blocks of positions that stay in the cache of a core.
_BLOCK_ELEMENTS = 1 << 19


class SmoothedLoss(NamedTuple):
    """Sums over the target tokens: training loss, negative log-likelihood and correct top-1 predictions."""

    loss: Tensor
    nll_loss: Tensor
    correct: Tensor


def label_smoothed_loss(
    features: Tensor,
    weight: Tensor,
    target: Tensor,
    epsilon: float,
    ignore_index: int,
    bias: Tensor | None = None,
    count_correct: bool = True,
) -> SmoothedLoss:
    """Project to the vocabulary at each position and sum the label-smoothed cross-entropy, in nats.

    The forward pass also computes the gradient, one chunk of positions at a time, so the scores are never stored or
    computed twice. The result equals fairseq's loss up to rounding.

    Args:
        features: output of the decoder, B x T x C or rows x C.
        weight: weight of the output projection, V x C; under autocast, the products use its precision.
        target: target tokens, B x T or rows.
        epsilon: label smoothing; 0 gives the plain cross-entropy.
        ignore_index: the token whose positions are ignored.
        bias: bias of the output projection, V.
        count_correct: also count correct top-1 predictions; otherwise ``correct`` is 0.

    Source: Szegedy et al. 2016, section 7, in the form of fairseq's ``label_smoothed_nll_loss``: a row's loss
    ``(1 - epsilon - e) (lse - x_t) + e (V lse - sum x)`` with ``e = epsilon / (V - 1)`` is
    ``lse - (1 - epsilon - e) x_t - e sum x``.
    """
    target = target.reshape(-1)
    counted = target.ne(ignore_index).nonzero().squeeze(1)
    rows = features.reshape(-1, features.size(-1)).index_select(0, counted)
    need_gradient = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (rows, weight, bias))
    return SmoothedLoss(
        *_SmoothedLoss.apply(
            rows, weight, bias, target[counted], epsilon, product_dtype(weight), need_gradient, count_correct
        )
    )


class _SmoothedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        epsilon: float,
        dtype: torch.dtype,
        need_gradient: bool,
        count_correct: bool,
    ) -> tuple[Tensor, ...]:
        size = weight.size(0)
        share = epsilon / (size - 1)
        hit = 1.0 - epsilon - share
        loss, nll_loss = (torch.zeros((), device=rows.device) for _ in range(2))
        correct = torch.zeros((), device=rows.device, dtype=torch.long)
        rows_gradient = torch.empty_like(rows if need_gradient else rows[:0])
        weight_gradient = torch.zeros_like(weight if need_gradient else weight[:0], dtype=torch.float32)
        bias_gradient = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        with torch.autocast(rows.device.type, enabled=False):
            product_weight = weight.to(dtype)
            chunk = max(1, _CHUNK_BYTES // (size * product_weight.element_size()))
            # Reused, because new memory is slow.
            buffer = torch.empty(min(chunk, rows.size(0)), size, dtype=dtype, device=rows.device)
            for begin in range(0, rows.size(0), chunk):
                x = rows[begin : begin + chunk].to(dtype)
                t = target[begin : begin + chunk, None]
                scores = buffer[: len(x)]
                if bias is None:
                    torch.mm(x, product_weight.t(), out=scores)
                else:
                    torch.addmm(bias.to(dtype), x, product_weight.t(), out=scores)
                score = scores.gather(1, t).float()
                if count_correct:
                    correct += scores.argmax(-1, keepdim=True).eq(t).sum()
                lse, total = _score_gradients(scores, share)
                nll_loss += (lse - score).sum()
                loss += (lse - hit * score).sum() - share * total
                if need_gradient:
                    at_target = ((score - lse).exp() - share - hit).to(dtype)
                    # scatter_ would copy all scores.
                    scores[torch.arange(len(x), device=x.device), t.squeeze(1)] = at_target.squeeze(1)
                    if bias_gradient is not None:
                        bias_gradient += scores.sum(0, dtype=torch.float32)
                    rows_gradient[begin : begin + chunk] = scores @ product_weight
                    if dtype == torch.float32:
                        weight_gradient.addmm_(scores.t(), x)
                    else:
                        weight_gradient += scores.t() @ x
        ctx.save_for_backward(rows_gradient, weight_gradient, bias_gradient)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(nll_loss, correct)
        return loss, nll_loss, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_unused: Tensor) -> tuple[Tensor | None, ...]:
        rows_gradient, weight_gradient, bias_gradient = ctx.saved_tensors
        weight_gradient = (weight_gradient * gradient).to(ctx.weight_dtype)
        if bias_gradient is not None:
            bias_gradient = (bias_gradient * gradient).to(ctx.weight_dtype)
        rows_gradient = rows_gradient * gradient.to(rows_gradient.dtype)
        return rows_gradient, weight_gradient, bias_gradient, None, None, None, None, None


def _score_gradients(scores: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Replace scores (rows x V) by their probabilities minus the share of the smoothing for each word.

    Returns:
        The logarithm of each row's sum of exponentials, rows x 1, and the sum of all scores.
    """
    rows, size = scores.shape
    block = max(1, (_BLOCK_ELEMENTS if scores.device.type == "cpu" else _CHUNK_BYTES // 8) // size)
    lse = scores.new_empty(rows, 1, dtype=torch.float32)
    total = scores.new_zeros((), dtype=torch.float32)
    in_place = scores.dtype == torch.float32
    buffer = scores.new_empty(0 if in_place else min(block, rows), size, dtype=torch.float32)
    shift = lse.new_tensor(-share)
    for begin in range(0, rows, block):
        part = scores[begin : begin + block]
        exponentials = part if in_place else buffer[: len(part)].copy_(part)
        total += exponentials.sum()
        highest = exponentials.amax(-1, keepdim=True)
        sums = exponentials.sub_(highest).exp_().sum(-1, keepdim=True)
        lse[begin : begin + block] = highest + sums.log()
        torch.addcmul(shift, exponentials, sums.reciprocal_(), out=part)
    return lse, total
