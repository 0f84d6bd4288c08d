"""fairseq's Transformer layers with Admin's residual weights."""

from __future__ import annotations

from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase, TransformerEncoderLayerBase
from torch import nn

from fairseq_sharing.admin.residual import AdminResidual


class AdminEncoderLayer(AdminResidual, TransformerEncoderLayerBase):
    """Encoder layer: self-attention and feed-forward, each with a weighted residual."""

    def __init__(self, cfg, return_fc: bool = False):
        super().__init__(cfg, return_fc=return_fc)
        self.add_residual_weight(1 + self.has_ffn, cfg.encoder.embed_dim)


class AdminDecoderLayer(AdminResidual, TransformerDecoderLayerBase):
    """Decoder layer: self-attention, cross-attention if present, and feed-forward, each with a weighted residual."""

    def __init__(self, cfg, no_encoder_attn: bool = False):
        super().__init__(cfg, no_encoder_attn)
        self.add_residual_weight((1 if no_encoder_attn else 2) + self.has_ffn, cfg.decoder.embed_dim)


def with_checkpointing(layer: nn.Module, cfg) -> nn.Module:
    """Apply activation checkpointing to a layer if enabled, as fairseq's stacks do."""
    if not cfg.checkpoint_activations:
        return layer
    return checkpoint_wrapper(layer, offload_to_cpu=cfg.offload_activations)
