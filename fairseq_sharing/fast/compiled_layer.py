"""A Transformer layer compiled once, whose graph serves every depth of its stack.

A graph is made for what it has met: another shape class, stride or missing input makes another one. So the layer gets
its inputs in one form: strides of a plain tensor, always a mask, a source that is projected already.
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

from fairseq_sharing.errors import SharingError
from fairseq_sharing.fast.attention import FastAttention, full_mask

_shapes: Any = _config


def compile_layers(model: nn.Module) -> None:
    """Let every layer of fairseq's Transformer in a model train in compiled form.

    Validation and decoding run as before. Depths of a stack have one graph for batches of several sentences and one
    for a single sentence, whatever their lengths and with or without padding.

    Args:
        model: its layers are changed; its parameters and their names are not. Its attention must be fast.

    Raises:
        SharingError: an attention that cannot run fast.
    """
    for layer in model.modules():
        if not isinstance(layer, TransformerEncoderLayerBase | TransformerDecoderLayerBase):
            continue
        for name, module in layer.named_children():
            if isinstance(module, MultiheadAttention) and not isinstance(module, FastAttention):
                raise SharingError(
                    f"--compile: {name} cannot run in the form that --fast gives it; leave --compile out"
                )
        run: Callable[..., Any] = _decoder_layer if isinstance(layer, TransformerDecoderLayerBase) else _encoder_layer
        setattr(layer, "forward", functools.partial(run, layer))  # noqa: B010  mypy takes a method for a constant


@functools.cache
def compiled(kind: type[nn.Module]) -> Callable[..., Any]:
    """Compile the forward pass of a class of layers; parameters are inputs of its graph."""
    return torch.compile(kind.forward, dynamic=True)


def _run(layer: Any, *args: Any, **kwargs: Any) -> Any:
    # Lengths that happen to be equal in a first batch must not be taken for one length.
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
    # Admin measures its layers in a pass without gradients.
    return layer.training and torch.is_grad_enabled()


def _plain(x: Tensor) -> Tensor:
    """Give a tensor, T x B x C, in its own storage and with the strides of a new one, also where B is 1."""
    strides = (x.size(1) * x.size(2), x.size(2), 1)
    return x.clone(memory_format=torch.contiguous_format) if x._is_view() or x.stride() != strides else x
