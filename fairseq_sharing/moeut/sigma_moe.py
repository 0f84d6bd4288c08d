"""sigma-MoE: a feed-forward layer with a bank of small experts, where each token uses a few."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from fairseq_sharing.moeut.experts import Dispatch, ExpertOptions, expert_linear
from fairseq_sharing.moeut.routing import Router, Routing


class SigmaMoE(nn.Module):
    """Feed-forward layer z = sum_e s_e W2_e ReLU(W1_e x) over the top_k experts of a token; s_e are sigmoids.

    The router reads the normalized token, the experts the raw one. No biases.

    Args:
        embed_dim: d.
        num_experts: N_E.
        top_k: K, experts that a token uses.
        expert_dim: d_e, hidden width of an expert.
        scale: initial standard deviations are scale / sqrt(d); sqrt(2 / L) in MoEUT.
        options: options of the expert banks.

    Shape:
        up: (num_experts, embed_dim, expert_dim); down: (num_experts, expert_dim, embed_dim);
        router.weight: (num_experts, embed_dim).

    Source: Csordas et al. 2023, "Approximating Two-Layer Feedforward Networks for Efficient Transformers", section 5.
    """

    def __init__(
        self, embed_dim: int, num_experts: int, top_k: int, expert_dim: int, scale: float, options: ExpertOptions
    ):
        super().__init__()
        self.options = options
        self.router = Router(embed_dim, num_experts, top_k, dropout=options.dropout)
        self.up = nn.Parameter(torch.empty(num_experts, embed_dim, expert_dim))
        self.down = nn.Parameter(torch.empty(num_experts, expert_dim, embed_dim))
        self.router.reset(scale * embed_dim**-0.5, options.equal_router_rows)
        nn.init.normal_(self.up, std=scale * embed_dim**-0.5)
        nn.init.normal_(self.down, std=scale * (num_experts * expert_dim) ** -0.5)

    def forward(self, normalized: Tensor, x: Tensor) -> tuple[Tensor, Routing]:
        """Transform tokens.

        Args:
            normalized: input of the router, (N, embed_dim).
            x: input of the experts, (N, embed_dim).

        Returns:
            The output, (N, embed_dim), and the router's choices.
        """
        routing = self.router(normalized)
        dispatch = Dispatch(routing.experts.flatten(1), self.router.num_experts)
        multiply = partial(expert_linear, backend=self.options.backend, keep_gathered=self.options.keep_gathered)
        hidden = multiply(x, self.up, dispatch, outputs=self.router.top_k).relu()
        return multiply(hidden, self.down, dispatch, routing.gates.flatten(1)), routing
