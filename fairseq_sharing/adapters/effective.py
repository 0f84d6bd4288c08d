"""The matrices that a depth uses: those of its parameter set with its adapters and factors applied.

Tensors are given by their names within a layer, so that one function serves models and checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

# Attribute of a layer that contains its adapters and factors.
ATTRIBUTE = "depth"
_LORA = re.compile(rf"{ATTRIBUTE}\.lora\.(.+)\.a")
_SCALE = re.compile(rf"{ATTRIBUTE}\.scale\.(.+)")
_IN_LAYER = re.compile(r"(.+\.layers\.\d+)\.(.+)")


def effective_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Compute the weights of a layer that its adapters and factors change: diag(s) (W + B A).

    A factor multiplies an output unit of a key or value projection, with its bias; and an input of the second
    feed-forward matrix, which is an activation.

    Args:
        tensors: the layer's tensors, with ``depth.lora.NAME.a`` (r x d_in), ``depth.lora.NAME.b`` (d_out x r) and
            ``depth.scale.NAME``.

    Returns:
        The changed weights and biases by name.

    Source: Bae et al. 2025, "Relaxed Recursive Transformers", for the adapters.
    """
    changed: dict[str, Tensor] = {}
    for name, a in tensors.items():
        if match := _LORA.fullmatch(name):
            weight = f"{match[1]}.weight"
            changed[weight] = _with_adapter(tensors[weight], tensors[f"{name[:-1]}b"], a)
    for name, factors in tensors.items():
        if match := _SCALE.fullmatch(name):
            weight, bias = f"{match[1]}.weight", f"{match[1]}.bias"
            kept = changed.get(weight, tensors[weight])
            if match[1] == "fc2":
                changed[weight] = kept * factors
            else:
                changed[weight] = kept * factors[:, None]
                if bias in tensors:
                    changed[bias] = tensors[bias] * factors
    return changed


def _with_adapter(weight: Tensor, b: Tensor, a: Tensor) -> Tensor:
    device = weight.device.type
    # The product has the precision of the weights; autocast converts the sum where a layer uses it.
    with torch.autocast(device if torch.amp.is_autocast_available(device) else "cpu", enabled=False):
        return torch.addmm(weight, b, a)


def merge_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the matrices of a state dict by those that each depth uses, and drop adapters and factors.

    Args:
        state: a model's state dict with the tensors of every layer, including those that it shares.

    Returns:
        The state dict without adapters and factors.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        if match := _IN_LAYER.fullmatch(name):
            layers.setdefault(match[1], {})[match[2]] = value
    changed = {
        f"{layer}.{name}": value for layer, own in layers.items() for name, value in effective_weights(own).items()
    }
    return {name: changed.get(name, value) for name, value in state.items() if not is_adapter(name)}


def is_adapter(name: str) -> bool:
    """Return whether a tensor of a model is part of an adapter or a factor."""
    match = _IN_LAYER.fullmatch(name)
    return bool(match and match[2].split(".")[0] == ATTRIBUTE)


def stored_bytes(tensors: Iterable[Any]) -> int:
    """Count the bytes of tensors, with shared storage counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if torch.is_tensor(t)}
    return sum(storages.values())
