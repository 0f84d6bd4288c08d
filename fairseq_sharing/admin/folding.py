"""Fold Admin's residual weights into the adjacent weights, for an engine with plain residual connections.

A post-norm sub-layer with Admin computes LN(x * w + f(x)). With x' = x * w, this is LN(x' + f'(x')), where f' divides
its input by w, and x' is the output of the preceding norm with gain and bias times w. So w is folded into that norm
(for the first sub-layer, into the embeddings) and 1 / w into the columns of the first matrices of f. Both are exact
except for rounding.

Residual weights belong to the depth. A shared matrix is therefore stored once per depth if they differ. The weight of
DeepNorm is the same at every depth, so shared matrices remain shared.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fairseq_sharing.errors import SharingError

# Dividing by a smaller weight loses the precision of what it multiplies.
_SMALLEST = 1e-3


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
    if not hasattr(stack.layers[0], "residual_weight"):
        return 0
    norm = getattr(spec, "layernorm_embedding", None)
    weights_of: dict[Any, set[bytes]] = {}
    for depth, (layer_spec, layer) in enumerate(zip(spec.layer, stack.layers, strict=True)):
        for number, (first, matrix, next_norm) in enumerate(_sublayers(layer_spec, layer)):
            weight = layer.residual_weight[number].numpy()
            if not np.abs(weight).min() >= _SMALLEST:
                raise SharingError(
                    f"{name} layer {depth + 1}: Admin's residual weight {np.abs(weight).min():.2g} is too small to be "
                    f"folded; it must be at least {_SMALLEST}; translate with --engine fairseq"
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
    """Return for each sub-layer the first matrix in the specification and in the model, and the norm after it."""
    found = [(spec.self_attention.linear[0], layer.self_attn.q_proj.weight, spec.self_attention.layer_norm)]
    if hasattr(spec, "attention"):
        found.append((spec.attention.linear[0], layer.encoder_attn.q_proj.weight, spec.attention.layer_norm))
    if getattr(layer, "has_ffn", True):
        return [*found, (spec.ffn.linear_0, layer.fc1.weight, spec.ffn.layer_norm)]
    # The specification's feed-forward network adds nothing, and its norm is that of the last attention.
    first, matrix, _ = found[-1]
    return [*found[:-1], (first, matrix, spec.ffn.layer_norm)]


def _scale_input(spec: Any, weight: np.ndarray) -> None:
    """Scale the input of the first layer: embeddings and positions."""
    embeddings = spec.embeddings[0] if isinstance(spec.embeddings, list) else spec.embeddings
    embeddings.weight = embeddings.weight * weight
    spec.position_encodings.encodings = spec.position_encodings.encodings * weight
