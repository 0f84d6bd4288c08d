"""Change the sharing of a model during training: layer maps, optimizer and data-parallel wrapper together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from fairseq_sharing.layer_map import StackSharing
from fairseq_sharing.tying import refresh_data_parallel


def change_sharing(
    model: Any,
    changes: Mapping[str, tuple[StackSharing, tuple[int, ...]]],
    optimizer: Any,
    wrapped: nn.Module,
    also_optimized: Iterable[nn.Parameter] = (),
    inherit: bool = True,
) -> None:
    """Change the sharing of a model during training and update everything that lists its parameters.

    Args:
        model: a shared model.
        changes: for each stack, the new sharing and the frozen layers.
        optimizer: fairseq's optimizer of the model.
        wrapped: the model in its data-parallel wrapper, or the model itself.
        also_optimized: parameters outside the model that the optimizer updates, for example those of a criterion.
        inherit: whether a parameter that becomes independent gets a copy of the optimizer state of its origin, instead
            of an empty state.
    """
    origins: dict[nn.Parameter, nn.Parameter] = {}
    for name, (sharing, frozen) in changes.items():
        stack = model.get_submodule(name)
        origins.update(stack.change_map(sharing))
        stack.freeze(frozen)
    trainable = [p for p in (*model.parameters(), *also_optimized) if p.requires_grad]
    follow_model(optimizer, trainable, origins, inherit)
    refresh_data_parallel(wrapped)


def follow_model(
    optimizer: Any,
    parameters: list[nn.Parameter],
    origins: Mapping[nn.Parameter, nn.Parameter],
    inherit: bool = True,
) -> None:
    """Make an optimizer list the parameters that a model owns now, and no others.

    The list is rebuilt in the order of a new optimizer. A checkpoint stores state by position, so a parameter appended
    at the end would get another parameter's moments on resume.

    Args:
        optimizer: fairseq's optimizer: plain, AMP, memory-efficient or with unflattened fp32 master weights.
        parameters: the trainable parameters, in that order.
        origins: for each new parameter, the parameter that it was copied from.
        inherit: whether a new parameter also gets a copy of its origin's optimizer state.
    """
    inner = optimizer.optimizer
    (group,) = inner.param_groups
    if hasattr(optimizer, "fp32_params"):
        # The optimizer updates fp32 master copies of the model's parameters.
        masters = dict(zip(optimizer.fp16_params, optimizer.fp32_params, strict=True))
        old_masters = dict(masters)
        for parameter in parameters:
            if parameter not in masters:
                values = masters.get(origins.get(parameter, parameter), parameter).detach()
                masters[parameter] = nn.Parameter(values.float().clone())
        origins = {masters[new]: old_masters[old] for new, old in origins.items() if new in masters}
        optimizer.fp16_params[:] = parameters
        parameters = [masters[parameter] for parameter in parameters]
        optimizer.fp32_params[:] = parameters
    if inherit:
        for new, old in origins.items():
            if old in inner.state:
                inner.state[new] = {k: v.clone() if torch.is_tensor(v) else v for k, v in inner.state[old].items()}
    for dropped in set(inner.state) - set(parameters):
        del inner.state[dropped]
    group["params"] = parameters


def measure_bytes(model: nn.Module, optimizer: Any) -> dict[str, int]:
    """Measure the static memory of training.

    Returns:
        Bytes of weights, gradients, optimizer (its state, for example Adam's two moments) and, if present, masters
        (fp32 master weights and their gradients). Each storage is counted once.
    """
    weights = list(model.parameters())
    state = [
        value for entry in optimizer.optimizer.state.values() for value in entry.values() if torch.is_tensor(value)
    ]
    parts: dict[str, list[Any]] = {"weights": weights, "gradients": [p.grad for p in weights], "optimizer": state}
    masters = getattr(optimizer, "fp32_params", [])
    if masters:
        parts["masters"] = [*masters, *(master.grad for master in masters)]
    sizes = {}
    for part, tensors in parts.items():
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t is not None}
        sizes[part] = sum(storages.values())
    return sizes
