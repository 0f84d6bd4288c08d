"""Change what a model in training shares: its maps, the optimizer and the data-parallel wrapper together."""

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
    """Change what a model in training shares, and all that lists its parameters with it.

    Args:
        model: a shared model.
        changes: by stack, the new sharing and the layers that are frozen.
        optimizer: fairseq's optimizer of the model.
        wrapped: the model in its data-parallel wrapper, or the model itself.
        also_optimized: parameters outside the model that the optimizer has, as of a criterion.
        inherit: whether a parameter that becomes a layer's own goes on with a copy of the optimizer's state of the one
            it comes from, instead of none.
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
    """Make an optimizer hold what a model owns now, and nothing else.

    The list is written anew in the order in which the optimizer would be built: a checkpoint keeps state by position,
    so that a parameter appended at the end would be given another one's moments when the training goes on.

    Args:
        optimizer: fairseq's optimizer: plain, AMP, memory-efficient or with unflattened fp32 masters.
        parameters: the trainable parameters, in that order.
        origins: each new one -> the one that it copies.
        inherit: whether it gets a copy of that one's state too.
    """
    inner = optimizer.optimizer
    (group,) = inner.param_groups
    if hasattr(optimizer, "fp32_params"):
        # The optimizer works on fp32 masters of the model's parameters.
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
    """Measure the static memory of a training.

    Returns:
        Bytes of the storages, each counted once, of weights, gradients, optimizer (its state, as Adam's two moments)
        and, where it has them, fp32 masters with their gradients.
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
