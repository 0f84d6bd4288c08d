"""Compiled Transformer layers with one graph for all depths of a stack.

A graph is specialized to its inputs: a different shape class, stride or missing input triggers a recompilation. The
layer therefore always gets contiguous inputs, a mask and a projected source.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from fairseq.modules import MultiheadAttention
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase, TransformerEncoderLayerBase
from torch import Tensor, nn
from torch.fx.experimental import _config

from fairseq_sharing.adapters.layer import with_effective_weights
from fairseq_sharing.errors import SharingError
from fairseq_sharing.fast.attention import FastAttention, full_mask

_shapes: Any = _config


def compile_layers(model: nn.Module) -> None:
    """Compile every fairseq Transformer layer in a model for training.

    Validation and decoding are not compiled. A stack has one graph for batches of several sentences and one for a
    single sentence, for all lengths and with or without padding.

    Args:
        model: a model with fast attention. Its layers change; its parameters and their names do not.

    Raises:
        SharingError: if an attention module has no fast implementation.
    """
    for layer in model.modules():
        if not isinstance(layer, TransformerEncoderLayerBase | TransformerDecoderLayerBase):
            continue
        for name, module in layer.named_children():
            if isinstance(module, MultiheadAttention) and not isinstance(module, FastAttention):
                raise SharingError(
                    f"--compile requires the attention of --fast, which does not support {name}; remove --compile"
                )
        run: Callable[..., Any] = _decoder_layer if isinstance(layer, TransformerDecoderLayerBase) else _encoder_layer
        forward = with_effective_weights(layer, functools.partial(run, layer))
        setattr(layer, "forward", forward)  # noqa: B010  mypy rejects assigning to a method


@functools.cache
def compiled(kind: type[nn.Module]) -> Callable[..., Any]:
    """Compile the forward pass of a layer class; parameters are inputs of its graph."""
    return torch.compile(kind.forward, dynamic=True)


def _run(layer: Any, *args: Any, **kwargs: Any) -> Any:
    # Lengths that happen to be equal in the first batch must not be treated as the same length.
    with _shapes.patch(use_duck_shape=False):
        return compiled(type(layer))(layer, *args, **kwargs)  # type: ignore[arg-type]


def _encoder_layer(
    layer: Any, x: Tensor, encoder_padding_mask: Tensor | None = None, attn_mask: Tensor | None = None
) -> Any:
    if not _trains(layer) or attn_mask is not None:
        return type(layer).forward(layer, x, encoder_padding_mask, attn_mask)
    return _run(layer, _plain(x), full_mask(encoder_padding_mask, None, x, x.size(0)))


def _decoder_layer(
    layer: Any,
    x: Tensor,
    encoder_out: Tensor | None = None,
    encoder_padding_mask: Tensor | None = None,
    incremental_state: dict | None = None,
    *,
    self_attn_mask: Tensor | None = None,
    self_attn_padding_mask: Tensor | None = None,
    need_attn: bool = False,
    **others: Any,
) -> Any:
    attends = layer.encoder_attn is not None and encoder_out is not None
    if not _trains(layer) or incremental_state is not None or (need_attn and attends) or any(others.values()):
        masks = {"self_attn_mask": self_attn_mask, "self_attn_padding_mask": self_attn_padding_mask}
        return type(layer).forward(
            layer, x, encoder_out, encoder_padding_mask, incremental_state, need_attn=need_attn, **masks, **others
        )
    source = source_mask = None
    if layer.encoder_attn is not None and encoder_out is not None:
        source = layer.encoder_attn.shared_source(encoder_out)
        source_mask = full_mask(encoder_padding_mask, None, x, encoder_out.size(0))
    mask = full_mask(self_attn_padding_mask, self_attn_mask, x, x.size(0))
    return _run(layer, _plain(x), source, source_mask, self_attn_padding_mask=mask)


def _trains(layer: Any) -> bool:
    # Admin profiles its layers in a pass without gradients.
    return layer.training and torch.is_grad_enabled()


def _plain(x: Tensor) -> Tensor:
    """Return a tensor, T x B x C, with its own storage and the strides of a new tensor, even if B is 1."""
    strides = (x.size(1) * x.size(2), x.size(2), 1)
    return x.clone(memory_format=torch.contiguous_format) if x._is_view() or x.stride() != strides else x
