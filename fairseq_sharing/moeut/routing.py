"""Routing: select the experts of each token and their weights, and measure how evenly experts are used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fairseq_sharing.fast.precision import product_dtype
from fairseq_sharing.moeut.kernels import has_kernels


@dataclass(frozen=True)
class Routing:
    """The choices of a router for N tokens.

    Attributes:
        experts: selected experts of each head, numbered head * num_experts + expert, (N, heads, top_k).
        gates: their weights, unnormalized sigmoids between 0 and 1, fp32, (N, heads, top_k).
        logits: logits of all experts, fp32, (N, heads, num_experts).
    """

    experts: Tensor
    gates: Tensor
    logits: Tensor


class Router(nn.Module):
    """Select the top_k experts of each head with a linear map; the gates are sigmoids of its outputs.

    Routing always runs in fp32, because in bf16 many scores at the top_k boundary are exactly equal. Experts are
    selected by logits, which do not saturate, unlike their sigmoids.

    Args:
        embed_dim: d, channels of a token.
        num_experts: experts per head.
        top_k: selected experts per head.
        heads: independent choices per token; 1 for a feed-forward bank.
        dropout: probability that an expert cannot be selected for a token during training.

    Shape:
        weight: (heads * num_experts, embed_dim).

    Source: Csordas et al. 2023, sigma-MoE (arXiv 2310.10837), section 5; per-head routers: Csordas et al. 2024,
        SwitchHead (arXiv 2312.07987), section 2.2.
    """

    def __init__(self, embed_dim: int, num_experts: int, top_k: int, heads: int = 1, dropout: float = 0.0):
        super().__init__()
        self.num_experts, self.top_k, self.heads, self.dropout = num_experts, top_k, heads, dropout
        self.weight = nn.Parameter(torch.empty(heads * num_experts, embed_dim))

    def reset(self, std: float, equal_rows: bool = False) -> None:
        """Initialize the weight; with ``equal_rows`` the rows of all experts have the same norm."""
        nn.init.normal_(self.weight, std=std)
        if equal_rows:
            with torch.no_grad():
                self.weight.mul_(std * self.weight.size(1) ** 0.5 / self.weight.norm(dim=1, keepdim=True))

    def forward(self, x: Tensor) -> Routing:
        """Select experts.

        Args:
            x: normalized tokens, (N, embed_dim).
        """
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        gradients = product_dtype(x)
        with torch.autocast(x.device.type, enabled=False):
            logits = _Logits.apply(x, self.weight.to(x.dtype), gradients)
            logits = logits.unflatten(-1, (self.heads, self.num_experts))
            candidates = logits.detach()
            if self.training and self.dropout > 0:
                candidates = candidates.masked_fill(torch.rand_like(candidates) < self.dropout, -torch.inf)
            if _has_kernels(logits):
                chosen, gates = _Choice.apply(logits, candidates, self.top_k)
                return Routing(chosen, gates, logits)
            chosen = candidates.topk(self.top_k, dim=-1, sorted=False).indices
            gates = logits.gather(-1, chosen).sigmoid()
            first = self.num_experts * torch.arange(self.heads, device=x.device)
            return Routing(chosen + first[:, None], gates, logits)


class _Logits(torch.autograd.Function):
    """A linear map in the precision of its inputs whose gradients use autocast's precision, like other linear maps."""

    @staticmethod
    def forward(ctx: Any, x, weight, dtype):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight)
        ctx.dtype = dtype
        return nn.functional.linear(x, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dlogits):  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        dlogits = dlogits.to(ctx.dtype)
        dx = dlogits @ weight.to(ctx.dtype)
        dweight = dlogits.t() @ x.to(ctx.dtype)
        return dx.to(x.dtype), dweight.to(weight.dtype), None


def _has_kernels(logits: Tensor) -> bool:
    return logits.is_cuda and logits.dtype == torch.float32 and has_kernels("cuda")


class _Choice(torch.autograd.Function):
    """Select experts and compute their gates with kernels."""

    @staticmethod
    def forward(ctx: Any, logits, candidates, top_k):  # type: ignore[no-untyped-def]
        from fairseq_sharing.moeut import routing_kernels

        chosen, gates = routing_kernels.choose(logits, candidates.contiguous(), top_k)
        ctx.mark_non_differentiable(chosen)
        ctx.set_materialize_grads(False)  # the selection has no gradient
        ctx.save_for_backward(chosen, gates)
        ctx.experts = logits.size(-1)
        return chosen, gates

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, _, dgates):  # type: ignore[no-untyped-def]
        from fairseq_sharing.moeut import routing_kernels

        if dgates is None:
            return None, None, None
        chosen, gates = ctx.saved_tensors
        return routing_kernels.choice_gradient(chosen, gates, dgates.contiguous(), ctx.experts), None, None


class _Mass(torch.autograd.Function):
    """Compute ``log_mass`` and ``counts`` of ``RouterUsage`` with kernels."""

    @staticmethod
    def forward(ctx: Any, logits, chosen, keep):  # type: ignore[no-untyped-def]
        from fairseq_sharing.moeut import routing_kernels

        log_mass, counts = routing_kernels.mass(logits, chosen, keep)
        ctx.mark_non_differentiable(counts)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, keep, log_mass)
        return log_mass, counts

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dlog_mass, _):  # type: ignore[no-untyped-def]
        from fairseq_sharing.moeut import routing_kernels

        if dlog_mass is None:
            return None, None, None
        return routing_kernels.mass_gradient(*ctx.saved_tensors, dlog_mass.contiguous()), None, None


@dataclass(frozen=True)
class RouterUsage:
    """Usage of one router's experts in a batch, for load balancing and logging.

    Attributes:
        router: the router's weight; usages with the same weight are pooled.
        kind: what is routed: ``ffn``, ``self_attn.value``, ``self_attn.output`` etc.
        log_mass: log of each expert's softmax probability summed over a sentence's tokens, (B, heads, num_experts).
        tokens: number of tokens of each sentence without padding, (B,).
        counts: how often each expert was selected, (heads, num_experts).
    """

    router: nn.Parameter
    kind: str
    log_mass: Tensor
    tokens: Tensor
    counts: Tensor

    @classmethod
    def of(cls, router: Router, routing: Routing, kind: str, keep: Tensor) -> RouterUsage:
        """Summarize a router's choices for a batch.

        Args:
            router: the router.
            routing: its choices for T * B tokens, time-major.
            kind: what is routed.
            keep: True for tokens that are not padding, (T, B).
        """
        length, batch = keep.shape
        if _has_kernels(routing.logits):
            log_mass, counts = _Mass.apply(routing.logits, routing.experts, keep.contiguous())
            return cls(router.weight, kind, log_mass, keep.sum(0), counts)
        with torch.autocast(keep.device.type, enabled=False):
            log_probs = routing.logits.log_softmax(-1).view(length, batch, router.heads, router.num_experts)
            log_mass = log_probs.masked_fill(~keep[:, :, None, None], -torch.inf).logsumexp(0)
        total = router.heads * router.num_experts
        # Padding is counted in an extra bin: boolean indexing would synchronize with the GPU.
        chosen = routing.experts.masked_fill(~keep.reshape(-1, 1, 1), total)
        counts = torch.bincount(chosen.flatten(), minlength=total + 1)[:total]
        return cls(router.weight, kind, log_mass, keep.sum(0), counts.view(router.heads, router.num_experts))


def negative_entropy(usages: list[RouterUsage], pool_batch: bool) -> Tensor:
    """Return the negative entropy of a router's mean distribution over its experts, to be minimized.

    The mean is over all tokens of a sentence and all usages of the router, that is, all layers that share it.

    Args:
        usages: usages of one router in one batch.
        pool_batch: also average over the sentences of the batch.

    Returns:
        sum_e p[e] log p[e] for each sentence, averaged over heads, in nats, from -log(num_experts) to 0: (B,). All
        values are equal if the batch is pooled.

    Source: Csordas et al. 2024, MoEUT (arXiv 2405.16039), section 2.1 (per sequence); batch-wide: sigma-MoE, section 5.
    """
    log_mass = torch.stack([usage.log_mass for usage in usages]).logsumexp(0)  # (B, heads, E)
    tokens = torch.stack([usage.tokens for usage in usages]).sum(0)  # (B,)
    batch = len(tokens)
    if pool_batch:
        log_mass, tokens = log_mass.logsumexp(0, keepdim=True), tokens.sum(0, keepdim=True)
    log_p = log_mass - tokens.to(log_mass.dtype).log()[:, None, None]
    return (log_p.exp() * log_p).sum(-1).mean(-1).expand(batch)
