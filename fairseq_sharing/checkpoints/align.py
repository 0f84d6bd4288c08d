"""Align a Transformer layer with another one: reorder its feed-forward units and attention heads.

Units and heads have no natural order: a layer computes the same function in any order of them. Before layers are
averaged, each is brought into the order that matches the first of them best.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fairseq_sharing.errors import SharingError
from fairseq_sharing.parameter_sets import in_scope

# Name of a tensor within its layer -> the tensor.
Layer = Mapping[str, Tensor]
# Dimension of each tensor along which the units or heads are counted. Other tensors do not depend on their order.
_FFN = {"fc1.weight": 0, "fc1.bias": 0, "ffn_layernorm.weight": 0, "ffn_layernorm.bias": 0, "fc2.weight": 1}
_HEADS = {f"{matrix}_proj.{kind}": 0 for matrix in "qkv" for kind in ("weight", "bias")} | {"out_proj.weight": 1}
_FIXED = re.compile(
    r"fc2\.bias|(self|encoder)_attn\.out_proj\.bias|(\w+_layer_norm|attn_ln)\.\w+|c_attn|w_resid|residual_weight"
)


def align_layer(layer: Layer, reference: Layer, heads: Mapping[str, int], scope: tuple[str, ...] = ("layer",)) -> Layer:
    """Reorder the units and heads of a layer without changing its function.

    Args:
        layer: the layer.
        reference: the layer to match, of the same shapes.
        heads: number of heads of each attention of the layer, by name: ``self_attn``, ``encoder_attn``.
        scope: the parts of a layer that are to be averaged; other parts keep their order.

    Returns:
        The reordered layer.

    Raises:
        SharingError: it is not a layer of fairseq's Transformer.
    """
    aligned = dict(layer)
    known: set[str] = set()
    for dims, count in _groups(layer, heads):
        known |= dims.keys()
        if any(in_scope(name, scope) for name in dims):
            order = _best_order(_features(reference, dims, count), _features(layer, dims, count))
            aligned |= {name: _reorder(layer[name], dim, order) for name, dim in dims.items()}
    unknown = next((name for name in layer if name not in known and not _FIXED.fullmatch(name)), None)
    if unknown is not None:
        raise SharingError(f"--align cannot reorder {unknown}; allowed: layers of fairseq's Transformer")
    return aligned


def _groups(layer: Layer, heads: Mapping[str, int]) -> Iterator[tuple[dict[str, int], int]]:
    """List what is reordered together: the dimension of each tensor, and the number of units or heads."""
    ffn = {name: dim for name, dim in _FFN.items() if name in layer}
    if ffn:
        yield ffn, layer["fc1.weight"].shape[0]
    for attention, count in heads.items():
        found = {f"{attention}.{name}": dim for name, dim in _HEADS.items() if f"{attention}.{name}" in layer}
        if found:
            yield found, count


def _features(layer: Layer, dims: Mapping[str, int], count: int) -> Tensor:
    """Concatenate all weights of each unit or head to one row."""
    return torch.cat([layer[name].double().movedim(dim, 0).reshape(count, -1) for name, dim in dims.items()], dim=1)


def _best_order(reference: Tensor, rows: Tensor) -> list[int]:
    """Find the order of the rows with the largest sum of inner products, and so the least distance."""
    _, order = linear_sum_assignment((reference @ rows.t()).numpy(), maximize=True)
    return order.tolist()


def _reorder(tensor: Tensor, dim: int, order: list[int]) -> Tensor:
    return tensor.unflatten(dim, (len(order), -1)).index_select(dim, torch.tensor(order)).flatten(dim, dim + 1)
