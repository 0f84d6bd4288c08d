"""fairseq's Transformer layers with the residual weights and the initialization of DeepNorm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fairseq_sharing.deep_norm.constants import constants_of

# Name of a matrix within a layer's module -> whether its initial gain is beta; otherwise it is 1.
_GAIN_IS_BETA = {"q_proj": False, "k_proj": False, "v_proj": True, "out_proj": True, "fc1": True, "fc2": True}


class DeepNorm:
    """Mixin for a fairseq Transformer layer with post-norm sub-layers x <- LN(alpha x + f(x)).

    The initial matrices are Xavier-uniform: with gain beta for ``v_proj``, ``out_proj``, ``fc1`` and ``fc2``, and with
    gain 1 for ``q_proj`` and ``k_proj``. This replaces fairseq's values, which for attention have gain 1/sqrt(2).
    Biases keep fairseq's initial values. A layer that owns no parameters draws none, so a parameter set is initialized
    once.

    Source: Wang et al. 2022, "DeepNet: Scaling Transformers to 1,000 Layers": residual connection and initialization.
    """

    def set_constants(self, cfg: Any, stack: str, no_encoder_attn: bool = False) -> None:
        """Set alpha, and initialize the matrices with beta. Call this after the layer is built."""
        self.alpha, beta = constants_of(cfg, stack, no_encoder_attn and not cfg.no_cross_attention)
        initialize(self, beta)  # type: ignore[arg-type]

    @property
    def residual_weight(self) -> Tensor:
        """Alpha for each sub-layer, as Admin has it: (sub-layers, 1)."""
        attends = getattr(self, "encoder_attn", None) is not None
        return torch.full((1 + attends + getattr(self, "has_ffn", True), 1), self.alpha)

    def residual_connection(self, x: Tensor, residual: Tensor) -> Tensor:
        """Add the output of a sub-layer to its weighted input, both (T, B, C)."""
        return residual * self.alpha + x


class DeepNormEncoder(DeepNorm):
    """Mixin for an encoder layer."""

    def __init__(self, cfg: Any, *args: Any, **kwargs: Any):
        super().__init__(cfg, *args, **kwargs)  # type: ignore[call-arg]
        self.set_constants(cfg, "encoder")


class DeepNormDecoder(DeepNorm):
    """Mixin for a decoder layer."""

    def __init__(self, cfg: Any, no_encoder_attn: bool = False):
        super().__init__(cfg, no_encoder_attn)  # type: ignore[call-arg]
        self.set_constants(cfg, "decoder", no_encoder_attn)


def initialize(layer: nn.Module, beta: float) -> None:
    """Draw the initial matrices of a layer; see ``DeepNorm``."""
    for name, module in layer.named_modules():
        kind = name.split(".")[-1]
        if isinstance(module, nn.Linear) and kind in _GAIN_IS_BETA:
            nn.init.xavier_uniform_(module.weight, gain=beta if _GAIN_IS_BETA[kind] else 1.0)
