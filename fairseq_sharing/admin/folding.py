"""Fold Admin's residual weights into the adjacent weights, for an engine with plain residual connections.

A post-norm sub-layer with Admin computes LN(x * w + f(x)). With x' = x * w, this is LN(x' + f'(x')), where f' divides
its input by w, and x' is the output of the preceding norm with gain and bias times w. So w is folded into that norm
(for the first sub-layer, into the embeddings) and 1 / w into the columns of the first matrices of f. Both are exact
except for rounding.

Residual weights belong to the depth. A shared matrix is therefore stored once per depth if they differ. The weight of
DeepNorm is the same at every depth, so shared matrices remain shared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fairseq_sharing.errors import SharingError

# Dividing by a smaller weight loses the precision of what it multiplies.
_SMALLEST = 1e-3


@dataclass(frozen=True)
class ResidualWeight:
    """The residual weight of one sub-layer and what it is folded into, by module names relative to the stack.

    Attributes:
        before: the norm that is multiplied by the weight; None for the embeddings and positions.
        first: the linear layers whose input is divided by the weight.
        weight: one value per dimension of the model.
    """

    before: str | None
    first: tuple[str, ...]
    weight: np.ndarray


def residual_weights(stack: Any, name: str) -> list[ResidualWeight]:
    """List the residual weights of a stack in the order of its sub-layers.

    Args:
        stack: fairseq's encoder or decoder.
        name: name of the model and stack in error messages.

    Returns:
        The weights; empty without Admin or DeepNorm.

    Raises:
        SharingError: a residual weight is zero or almost zero.
    """
    if not hasattr(stack.layers[0], "residual_weight"):
        return []
    before = "layernorm_embedding" if stack.layernorm_embedding is not None else None
    found = []
    for depth, layer in enumerate(stack.layers):
        for weight, (first, norm) in zip(layer.residual_weight, _sublayers(layer), strict=True):
            values = weight.detach().numpy()
            if not np.abs(values).min() >= _SMALLEST:
                raise SharingError(
                    f"{name} layer {depth + 1}: Admin's residual weight {np.abs(values).min():.2g} is too small to be "
                    f"folded; it must be at least {_SMALLEST}; translate with --engine fairseq"
                )
            prefix = f"layers.{depth}"
            found.append(ResidualWeight(before, tuple(f"{prefix}.{part}" for part in first), values))
            before = f"{prefix}.{norm}"
    return found


def _sublayers(layer: Any) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the first linear layers of each sub-layer, and the norm after it."""
    yield tuple(f"self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj")), "self_attn_layer_norm"
    if getattr(layer, "encoder_attn", None) is not None:
        yield ("encoder_attn.q_proj",), "encoder_attn_layer_norm"
    if getattr(layer, "has_ffn", True):
        yield ("fc1",), "final_layer_norm"


def fold_admin(spec: Any, model: Any, name: str) -> int:
    """Fold the residual weights of a model, if it has any, into its CTranslate2 specification.

    Args:
        spec: the specification with the model's weights.
        model: the model. Layers with residual weights have ``residual_weight``, (sub-layers, embed_dim or 1).
        name: the model's name in error messages.

    Returns:
        Number of additional matrices: shared before, and different per depth now.

    Raises:
        SharingError: if a residual weight is zero or almost zero.
    """
    return sum(
        _fold_stack(getattr(spec, stack), getattr(model, stack), f"{name}: {stack}") for stack in ("encoder", "decoder")
    )


def _fold_stack(spec: Any, stack: Any, name: str) -> int:
    norm = getattr(spec, "layernorm_embedding", None)
    weights_of: dict[Any, set[bytes]] = {}
    residuals = residual_weights(stack, name)
    layers = zip(spec.layer, stack.layers, strict=True) if residuals else ()
    parts = [part for layer_spec, layer in layers for part in _parts(layer_spec, layer)]
    for residual, (first, next_norm) in zip(residuals, parts, strict=True):
        if norm is None:
            _scale_input(spec, residual.weight)
        else:
            norm.gamma, norm.beta = norm.gamma * residual.weight, norm.beta * residual.weight
        first.weight = first.weight / residual.weight
        matrix = stack.get_parameter(f"{residual.first[0]}.weight")
        weights_of.setdefault(matrix, set()).add(residual.weight.tobytes())
        norm = next_norm
    return sum(len(weights) - 1 for weights in weights_of.values())


def _parts(spec: Any, layer: Any) -> list[tuple[Any, Any]]:
    """Return for each sub-layer of CTranslate2's layer its first matrix and the norm after it."""
    found = [(spec.self_attention.linear[0], spec.self_attention.layer_norm)]
    if hasattr(spec, "attention"):
        found.append((spec.attention.linear[0], spec.attention.layer_norm))
    if getattr(layer, "has_ffn", True):
        return [*found, (spec.ffn.linear_0, spec.ffn.layer_norm)]
    # The specification's feed-forward network adds nothing, and its norm is that of the last attention.
    return [*found[:-1], (found[-1][0], spec.ffn.layer_norm)]


def _scale_input(spec: Any, weight: np.ndarray) -> None:
    """Scale the input of the first layer: embeddings and positions."""
    embeddings = spec.embeddings[0] if isinstance(spec.embeddings, list) else spec.embeddings
    embeddings.weight = embeddings.weight * weight
    spec.position_encodings.encodings = spec.position_encodings.encodings * weight
