"""Give layers without a feed-forward network one that adds nothing, for an engine whose layers always have one.

The network has width 1 and zero weights. In a pre-norm layer this is exact. A post-norm layer normalizes once more:
the gain and bias of the last attention's LayerNorm move to the LayerNorm of the network, and the former becomes a plain
normalization. Normalizing twice equals normalizing once, except for the epsilon in the denominator.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def zero_ffn(model: Any) -> Iterator[None]:
    """Temporarily give every layer of both stacks that has no feed-forward network one that adds nothing."""
    layers = [
        layer
        for stack in (model.encoder, model.decoder)
        for layer in getattr(stack, "layers", ())
        if not getattr(layer, "has_ffn", True)
    ]
    kept = [_add(layer) for layer in layers]
    try:
        yield
    finally:
        for layer, modules in zip(layers, kept, strict=True):
            for name, module in modules.items():
                setattr(layer, name, module)


def last_norm(layer: Any) -> str:
    """Return the name of the LayerNorm of a layer's last attention."""
    return "self_attn_layer_norm" if getattr(layer, "encoder_attn", None) is None else "encoder_attn_layer_norm"


def _add(layer: Any) -> dict[str, nn.Module]:
    """Add the network to a layer; return the modules that it replaces by name."""
    attention_norm = getattr(layer, last_norm(layer))
    width = attention_norm.weight.numel()
    plain = nn.LayerNorm(width, eps=attention_norm.eps)
    added = {"fc1": _zeros(width, 1), "fc2": _zeros(1, width), "final_layer_norm": plain}
    if not layer.normalize_before:
        added |= {"final_layer_norm": attention_norm, last_norm(layer): plain}
    kept = {name: getattr(layer, name) for name in added}
    for name, module in added.items():
        setattr(layer, name, module)
    return kept


def _zeros(inputs: int, outputs: int) -> nn.Linear:
    made = nn.Linear(inputs, outputs)
    with torch.no_grad():
        made.weight.zero_()
        made.bias.zero_()
    return made
