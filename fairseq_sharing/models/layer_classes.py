"""The class of a stack's layers: fairseq's layer with the mixins of the techniques that the options select."""

from __future__ import annotations

import functools
from typing import Any

from fairseq.modules.transformer_layer import TransformerDecoderLayerBase, TransformerEncoderLayerBase

from fairseq_sharing.admin.layers import AdminDecoderLayer, AdminEncoderLayer
from fairseq_sharing.b2t.layers import B2T
from fairseq_sharing.deep_norm.layers import DeepNormDecoder, DeepNormEncoder
from fairseq_sharing.no_ffn.layers import WithoutFFN

# Each stack's layer of fairseq, with Admin, and the mixin of DeepNorm.
_CLASSES = {
    "encoder": (TransformerEncoderLayerBase, AdminEncoderLayer, DeepNormEncoder),
    "decoder": (TransformerDecoderLayerBase, AdminDecoderLayer, DeepNormDecoder),
}


def layer_class(cfg: Any, stack: str) -> type:
    """Return the class of a stack's layers; fairseq's own if no option changes it.

    Args:
        cfg: fairseq's TransformerConfig with the sharing options.
        stack: ``encoder`` or ``decoder``.
    """
    plain, admin, deep_norm = _CLASSES[stack]
    chosen = {WithoutFFN: getattr(cfg, f"{stack}_no_ffn"), B2T: cfg.b2t, deep_norm: cfg.deepnorm}
    return _composed(*(mixin for mixin, on in chosen.items() if on), plain if cfg.admin == "off" else admin)


def parts_of(layer: type) -> tuple[type, ...]:
    """Return the mixins and the base of a layer's class; the class itself if it is not composed."""
    return vars(layer).get("parts", (layer,))


@functools.cache
def _composed(*parts: type) -> type:
    if len(parts) == 1:
        return parts[0]
    return type("".join(part.__name__ for part in parts), parts, {"__doc__": "A layer of a stack.", "parts": parts})
