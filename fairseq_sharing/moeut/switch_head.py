"""SwitchHead: attention with banks of experts for the value and output maps, selected per token and head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairseq_sharing.moeut.experts import Dispatch, ExpertOptions, expert_linear
from fairseq_sharing.moeut.rotary import Rotation, rotate
from fairseq_sharing.moeut.routing import Router, Routing


@dataclass(frozen=True)
class Attended:
    """Keys and values of the attended tokens, (B, heads, S, head_dim)."""

    keys: Tensor
    values: Tensor

    def extend(self, later: Attended) -> Attended:
        """Append keys and values of later positions."""
        return Attended(torch.cat([self.keys, later.keys], 2), torch.cat([self.values, later.values], 2))


class SwitchHead(nn.Module):
    """Attention with one attention map per head and sparse value and output matrices.

    The source side (attended tokens) computes keys, and values as a sum over K_A matrices weighted by the value
    router's sigmoids. The destination side (attending tokens) computes queries, and outputs by the output router.
    Routers, queries and keys read normalized tokens, values raw ones. No biases.

    Args:
        embed_dim: d.
        heads: H, number of attention heads.
        head_dim: d_h.
        num_experts: N_A, matrices per head.
        top_k: K_A, matrices per head that a token uses.
        scale: initial standard deviations are scale / sqrt(d).
        dropout: dropout on attention probabilities.
        options: options of the expert banks.

    Shape:
        q_proj.weight, k_proj.weight: (H * d_h, d); value_experts: (H * N_A, d, d_h); output_experts: (H * N_A, d_h, d);
        value_router.weight, output_router.weight: (H * N_A, d).

    Source: Csordas et al. 2024, "SwitchHead: Accelerating Transformers with Mixture-of-Experts Attention", section 2.2.
    """

    def __init__(
        self,
        embed_dim: int,
        heads: int,
        head_dim: int,
        num_experts: int,
        top_k: int,
        scale: float,
        dropout: float,
        options: ExpertOptions,
    ):
        super().__init__()
        self.heads, self.head_dim, self.dropout, self.options = heads, head_dim, dropout, options
        self.q_proj = nn.Linear(embed_dim, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(embed_dim, heads * head_dim, bias=False)
        self.value_router = Router(embed_dim, num_experts, top_k, heads, options.dropout)
        self.output_router = Router(embed_dim, num_experts, top_k, heads, options.dropout)
        self.value_experts = nn.Parameter(torch.empty(heads * num_experts, embed_dim, head_dim))
        self.output_experts = nn.Parameter(torch.empty(heads * num_experts, head_dim, embed_dim))
        std = scale * embed_dim**-0.5
        nn.init.normal_(self.q_proj.weight, std=std)
        nn.init.normal_(self.k_proj.weight, std=std)
        self.value_router.reset(std, options.equal_router_rows)
        self.output_router.reset(std, options.equal_router_rows)
        self._initialize_bank(self.value_experts, std)
        self._initialize_bank(self.output_experts, scale * (heads * head_dim) ** -0.5)

    def _initialize_bank(self, bank: nn.Parameter, std: float) -> None:
        nn.init.normal_(bank, std=std)
        if self.options.normalized_banks:
            with torch.no_grad():
                bank.div_(bank.norm(dim=0, keepdim=True))
                bank.mul_(std / bank.std())

    def attended(self, normalized: Tensor, x: Tensor, turn: Rotation | None = None) -> tuple[Attended, Routing]:
        """Compute the source side.

        Args:
            normalized: input of keys and value router, (S, B, d).
            x: input of the value matrices, (S, B, d).
            turn: rotary angles of the S positions; None to leave the keys unrotated.

        Returns:
            Keys and values, and the choices of the value router.
        """
        length, batch, _ = x.shape
        keys = self._split(self.k_proj(normalized))
        routing = self.value_router(normalized.flatten(0, 1))
        values = self._multiply(x.flatten(0, 1), self.value_experts, routing, self.heads)
        values = values.view(length, batch, self.heads, self.head_dim).permute(1, 2, 0, 3)
        return Attended(keys if turn is None else rotate(keys, turn), values), routing

    def forward(
        self,
        normalized: Tensor,
        source: Attended,
        mask: Tensor | None = None,
        causal: bool = False,
        turn: Rotation | None = None,
    ) -> tuple[Tensor, Routing]:
        """Attend.

        Args:
            normalized: input of queries and output router, (T, B, d).
            source: keys and values to attend to.
            mask: True where attention is allowed, (B, 1, T or 1, S).
            causal: use causal attention, for T = S, instead of a mask.
            turn: rotary angles of the T positions; None to leave the queries unrotated.

        Returns:
            The output, (T, B, d), and the choices of the output router.
        """
        length, batch, _ = normalized.shape
        queries = self._split(self.q_proj(normalized))
        if turn is not None:
            queries = rotate(queries, turn)
        dropout = self.dropout if self.training else 0.0
        read = F.scaled_dot_product_attention(
            queries, source.keys, source.values, attn_mask=mask, dropout_p=dropout, is_causal=causal
        )
        rows = read.permute(2, 0, 1, 3).reshape(length * batch * self.heads, self.head_dim)
        routing = self.output_router(normalized.flatten(0, 1))
        return self._multiply(rows, self.output_experts, routing, 1).view(length, batch, -1), routing

    def _split(self, x: Tensor) -> Tensor:
        """(T, B, H * d_h) -> (B, H, T, d_h)."""
        return x.unflatten(-1, (self.heads, self.head_dim)).permute(1, 2, 0, 3)

    def _multiply(self, x: Tensor, bank: Tensor, routing: Routing, outputs: int) -> Tensor:
        dispatch = Dispatch(routing.experts.flatten(1), len(bank))
        return expert_linear(
            x,
            bank,
            dispatch,
            routing.gates.flatten(1),
            outputs=outputs,
            backend=self.options.backend,
            keep_gathered=self.options.keep_gathered,
        )
