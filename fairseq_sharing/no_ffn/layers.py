"""A fairseq Transformer layer without a feed-forward network, its residual connection and its LayerNorm."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class _Nothing(nn.Module):
    """Takes the place of the first matrix. Its output has no values, so the rest of the sub-layer costs nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_empty(0)


class WithoutFFN:
    """Mixin for a fairseq Transformer layer that ends after its last attention.

    The attention sub-layers and their LayerNorms are those of fairseq. ``fc1``, ``fc2`` and ``final_layer_norm`` have
    no parameters.

    Source: Pires et al. 2023, "One Wide Feedforward is All You Need": the decoder layers of the One Wide FFN model.
    """

    has_ffn = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.final_layer_norm = nn.Identity()

    def build_fc1(self, *_sizes: Any) -> nn.Module:
        """Return a module without parameters instead of the first matrix."""
        return _Nothing()

    def build_fc2(self, *_sizes: Any) -> nn.Module:
        """Return a module without parameters instead of the second matrix."""
        return nn.Identity()

    def residual_connection(self, x: Tensor, residual: Tensor) -> Tensor:
        """Add the output of a sub-layer to its input, (T, B, C); return the input unchanged for the missing one."""
        if x.dim() < residual.dim():
            return residual
        return super().residual_connection(x, residual)  # type: ignore[misc]
