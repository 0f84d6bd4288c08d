"""Fold Admin's residual weights into the weights around them, for an engine that adds plain residuals.

A post-norm sub-layer with Admin computes LN(x * w + f(x)). With x' = x * w, this is LN(x' + f'(x')), where f' divides
its input by w, and x' comes from the norm before it with gain and bias times w. So w goes into that norm (at the first
sub-layer into the embeddings) and 1 / w into the columns of the first matrices of f. Both are exact but for rounding.

The weights belong to the depth: what a map shares is stored once a depth where the weights of the depths differ.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fairseq_sharing.admin.layers import AdminDecoderLayer, AdminEncoderLayer
from fairseq_sharing.errors import SharingError

# A smaller weight cannot be divided by without losing what it multiplied.
_SMALLEST = 1e-3


def fold_admin(spec: Any, model: Any, name: str) -> int:
    """Fold the residual weights of a model, where it has any, into its CTranslate2 description.

    Args:
        spec: the description, with the model's weights.
        model: the model.
        name: what an error calls it.

    Returns:
        Number of matrices that a map shared and that now differ by depth.

    Raises:
        SharingError: a residual weight is 0 or nearly so.
    """
    return sum(
        _fold_stack(getattr(spec, stack), getattr(model, stack), f"{name}: {stack}") for stack in ("encoder", "decoder")
    )


def _fold_stack(spec: Any, stack: Any, name: str) -> int:
    if not isinstance(stack.layers[0], AdminEncoderLayer | AdminDecoderLayer):
        return 0
    norm = getattr(spec, "layernorm_embedding", None)
    weights_of: dict[Any, set[bytes]] = {}
    for depth, (layer_spec, layer) in enumerate(zip(spec.layer, stack.layers, strict=True)):
        for number, (first, matrix, next_norm) in enumerate(_sublayers(layer_spec, layer)):
            weight = layer.residual_weight[number].numpy()
            if not np.abs(weight).min() >= _SMALLEST:
                raise SharingError(
                    f"{name} layer {depth + 1}: Admin's residual weight {np.abs(weight).min():.2g} does not fold into "
                    f"the weights around it, it must be {_SMALLEST} or more; translate with --engine fairseq"
                )
            if norm is None:
                _scale_input(spec, weight)
            else:
                norm.gamma, norm.beta = norm.gamma * weight, norm.beta * weight
            first.weight = first.weight / weight
            weights_of.setdefault(matrix, set()).add(weight.tobytes())
            norm = next_norm
    return sum(len(weights) - 1 for weights in weights_of.values())


def _sublayers(spec: Any, layer: Any) -> list[tuple[Any, Any, Any]]:
    """Give of each sub-layer the first matrix, as described and as the model has it, and the norm after it."""
    found = [(spec.self_attention.linear[0], layer.self_attn.q_proj.weight, spec.self_attention.layer_norm)]
    if hasattr(spec, "attention"):
        found.append((spec.attention.linear[0], layer.encoder_attn.q_proj.weight, spec.attention.layer_norm))
    return [*found, (spec.ffn.linear_0, layer.fc1.weight, spec.ffn.layer_norm)]


def _scale_input(spec: Any, weight: np.ndarray) -> None:
    """Scale what the first layer reads, embeddings and positions."""
    embeddings = spec.embeddings[0] if isinstance(spec.embeddings, list) else spec.embeddings
    embeddings.weight = embeddings.weight * weight
    spec.position_encodings.encodings = spec.position_encodings.encodings * weight
