"""Output projection fused with the label-smoothed loss, without storing a batch's scores of the vocabulary."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fairseq_sharing.fast.precision import product_dtype

# Scores of the vocabulary are computed for one chunk of positions at a time. Larger chunks are faster, since each
# adds to the gradient of the whole weight.
_CHUNK_BYTES = 1 << 28
# Words whose gradients are computed at a time on a CPU in bf16.
_BLOCK_WORDS = 1 << 13


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
        with torch.autocast(rows.device.type, enabled=False):
            product_weight = weight.to(dtype)
            # Smoothing subtracts the share from the gradient of every score: these are its products.
            row_sum, word_sum = rows.to(dtype).sum(0, dtype=torch.float32), product_weight.sum(0, dtype=torch.float32)
            weight_gradient = (-share * row_sum).repeat(size if need_gradient else 0, 1)
            bias_gradient = None if bias is None else torch.full_like(bias, -share * len(rows), dtype=torch.float32)
            loss -= share * (row_sum @ word_sum + (0.0 if bias is None else len(rows) * bias.float().sum()))
            product_bias = None if bias is None else bias.to(dtype)
            chunk = max(1, _CHUNK_BYTES // (size * product_weight.element_size()))
            # Reused, because new memory is slow.
            buffer = torch.empty(min(chunk, rows.size(0)), size, dtype=dtype, device=rows.device)
            for begin in range(0, rows.size(0), chunk):
                x = rows[begin : begin + chunk].to(dtype)
                t = target[begin : begin + chunk, None]
                scores = buffer[: len(x)]
                if product_bias is None:
                    torch.mm(x, product_weight.t(), out=scores)
                else:
                    torch.addmm(product_bias, x, product_weight.t(), out=scores)
                score = scores.gather(1, t).float()
                if count_correct:
                    correct += scores.argmax(-1, keepdim=True).eq(t).sum()
                gradients = torch.softmax(scores, -1, out=scores)
                probability = gradients.gather(1, t).float()
                nll = -probability.log()
                if not (precise := probability[:, 0] >= torch.finfo(dtype).tiny).all():
                    others = F.linear(x[~precise], product_weight, product_bias).float()
                    nll[~precise] = others.logsumexp(-1, keepdim=True) - score[~precise]
                nll_loss += nll.sum()
                loss += (nll + (1.0 - hit) * score).sum()
                if need_gradient:
                    # scatter_ would copy all gradients.
                    gradients[torch.arange(len(x), device=x.device), t.squeeze(1)] = (probability - hit).to(dtype)[:, 0]
                    if bias_gradient is not None:
                        bias_gradient += gradients.sum(0, dtype=torch.float32)
                    rows_gradient[begin : begin + chunk] = gradients @ product_weight - (share * word_sum).to(dtype)
                    _add_product(weight_gradient, gradients, x)
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


def _add_product(total: Tensor, gradients: Tensor, x: Tensor) -> None:
    """Add the product of the transposed gradients, V x rows, and the inputs, rows x C, to a total, V x C."""
    if gradients.dtype == torch.float32:
        total.addmm_(gradients.t(), x)
    elif gradients.device.type == "cpu":
        # oneDNN multiplies a transposed left side at half speed in bf16, so the smaller side is transposed.
        transposed = x.t().contiguous()
        for begin in range(0, len(total), _BLOCK_WORDS):
            total[begin : begin + _BLOCK_WORDS] += (transposed @ gradients[:, begin : begin + _BLOCK_WORDS]).t()
    else:
        total += gradients.t() @ x
