"""Depth signal: one vector per depth, added to its input, so that layers with equal weights can distinguish depths."""

from __future__ import annotations

import torch
from fairseq.modules import SinusoidalPositionalEmbedding
from torch import Tensor, nn


class DepthSignal(nn.Module):
    """The signal of each depth of a stack. It is never shared.

    Args:
        kind: ``sinusoidal``: fairseq's sinusoidal embedding of position t, used for depth t; or ``learned``: one
            trained vector per depth.
        num_layers: N.
        embed_dim: C.

    Raises:
        ValueError: if ``kind`` is unknown.

    Shape:
        weight: (N, C).

    Source: Dehghani et al. 2019, "Universal Transformers", Section 2.1, equation 6 (sinusoidal over time steps); their
    code for the learned signal.
    """

    weight: Tensor

    def __init__(self, kind: str, num_layers: int, embed_dim: int):
        super().__init__()
        self.kind = kind
        if kind == "learned":
            self.weight = nn.Parameter(torch.empty(num_layers, embed_dim))
            nn.init.normal_(self.weight, std=embed_dim**-0.5)
        elif kind == "sinusoidal":
            waves = SinusoidalPositionalEmbedding.get_embedding(num_layers + 1, embed_dim)
            self.register_buffer("weight", waves[1:], persistent=False)  # depths count from 1
        else:
            raise ValueError(f"kind must be sinusoidal or learned, got {kind}")

    def forward(self, state: Tensor, depth: int) -> Tensor:
        """Add the signal of a depth, counted from 0, to a state (T, B, C)."""
        return state + self.weight[depth].to(state)
