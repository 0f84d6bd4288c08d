"""Untie a training checkpoint: training resumes from the new file with independent layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from fairseq_sharing.adapters.effective import is_adapter, merge_state
from fairseq_sharing.adapters.kinds import DEPTH_OPTIONS
from fairseq_sharing.checkpoints.arguments import model_arguments
from fairseq_sharing.checkpoints.finite_weights import refuse_nonfinite_weights
from fairseq_sharing.checkpoints.recorded_state import EXTRA_STATE, recorded_extra, recorded_sharing
from fairseq_sharing.checkpoints.sharing_state import layer_aliases
from fairseq_sharing.checkpoints.stock_model import model_on_meta
from fairseq_sharing.errors import SharingError
from fairseq_sharing.parameter_sets import full_name, names_by_layer

# Buffers of fairseq's modules.
_BUFFERS = ("version", "_float_tensor")
# Moving averages of the weights, of --store-ema.
_AVERAGES = ("ema", "ema_fp32_params")
_SHARING_VALUES = re.compile(
    r"((encoder|decoder)_)?(unique_layers|layer_map|sharing_scope|component_sharing)|(encoder|decoder|cross_stack)_sharing"
)


def untie(checkpoint: Mapping[str, Any], merge: bool = False) -> dict[str, Any]:
    """Give every layer of a training checkpoint its own parameters and its own copy of their optimizer state.

    Args:
        checkpoint: result of ``load_checkpoint`` for any shared model.
        merge: merge the adapters and factors of each depth into its matrices. Their optimizer state is dropped.

    Returns:
        The checkpoint of a model with ``--sharing none`` and no schedule. fairseq's own architectures load it too,
        except for adapters and factors that are not merged.

    Raises:
        SharingError: if no layer is shared, if the checkpoint has no optimizer state per parameter, or if the weights
            or the optimizer state are NaN or infinite.
    """
    state = dict(checkpoint["model"])
    refuse_nonfinite_weights(state)
    extra = recorded_extra(state)
    state.pop(EXTRA_STATE, None)
    sharing = recorded_sharing(checkpoint["model"])
    aliases = layer_aliases(state, sharing)
    if not aliases and not (merge and extra.get("depth")):
        raise SharingError("untie: the checkpoint has no shared layers")
    if "last_optimizer_state" not in checkpoint:
        raise SharingError("untie requires a training checkpoint; this one has no optimizer state")
    named = [name for name, value in state.items() if torch.is_tensor(value) and not name.endswith(_BUFFERS)]
    frozen = {f"{stack}.layers.{layer}." for stack, layers in extra.get("frozen", {}).items() for layer in layers}
    trained = [name for name in named if not name.startswith(tuple(frozen))]
    if any(shared.spans_stacks for shared in sharing.values()):
        # The decoder may own no parameter of a layer, so that the file does not contain their order.
        order = _order_in_model(checkpoint)
    else:
        order = _in_order(named, list(sharing), aliases)
    _add_layers(state, aliases, extra)
    if merge:
        state = merge_state(state)
        order = [name for name in order if not is_adapter(name)]
    elif "depth" in extra:
        state[EXTRA_STATE] = {"depth": extra["depth"]}
    optimizer = _spread(checkpoint["last_optimizer_state"], trained, order, aliases, state)
    untied = {**checkpoint, "model": state, "last_optimizer_state": optimizer}
    untied["extra_state"] = {
        name: _untied_average(value, aliases, extra, merge) if name in _AVERAGES else value
        for name, value in checkpoint["extra_state"].items()
        if not (isinstance(value, Mapping) and "schedule" in value)
    }
    if checkpoint.get("cfg"):
        untied["cfg"] = {**checkpoint["cfg"], "model": _without_sharing(checkpoint["cfg"]["model"], merge)}
    return untied


def _add_layers(state: dict[str, Any], aliases: Mapping[str, str], extra: Mapping[str, Any]) -> None:
    for name, owner in aliases.items():
        state[name] = state[owner].clone()
    for name, owner in extra.get("aliases", {}).items():
        state[name] = state[owner]


def _untied_average(
    averaged: Mapping[str, Any], aliases: Mapping[str, str], extra: Mapping[str, Any], merge: bool
) -> Any:
    """Untie the moving average of the weights (``--store-ema``)."""
    state = {name: value for name, value in averaged.items() if name != EXTRA_STATE}
    _add_layers(state, aliases, extra)
    return merge_state(state) if merge else state


def _order_in_model(checkpoint: Mapping[str, Any]) -> list[str]:
    """List the parameter names of the untied model in the order of the model that the arguments describe."""
    arguments = {**_without_sharing(model_arguments(checkpoint), merged=False), "fast": False, "compile": False}
    return [name for name, _ in model_on_meta(arguments, checkpoint["model"]).named_parameters()]


def _in_order(named: list[str], stacks: list[str], aliases: Mapping[str, str]) -> list[str]:
    """List the parameter names of the untied model in order: layer by layer, each in the order of the first layer."""
    order: list[str] = []
    for name in named:
        stack = next((stack for stack in stacks if name.startswith(f"{stack}.layers.")), None)
        if stack is None:
            order.append(name)
        elif not any(placed.startswith(f"{stack}.layers.") for placed in order):
            first = names_by_layer(named, stack).get(0, [])
            numbers = sorted(names_by_layer({*named, *aliases}, stack))
            order += [full_name(stack, number, leaf) for number in numbers for leaf in first]
    return order


def _spread(
    optimizer: Mapping[str, Any],
    trained: list[str],
    order: list[str],
    aliases: Mapping[str, str],
    state: Mapping[str, torch.Tensor],
) -> dict[str, Any]:
    """Copy the optimizer state of each original parameter to the untied parameters that come from it."""
    groups = optimizer["param_groups"]
    if len(groups) != 1 or len(groups[0]["params"]) != len(trained):
        raise SharingError(
            "untie: the optimizer state is not stored per parameter (as with --fp16 without --fp16-no-flatten-grads)"
        )
    place = dict(zip(trained, groups[0]["params"], strict=True))
    spread: dict[int, Any] = {}
    for number, name in enumerate(order):
        kept = optimizer["state"].get(place.get(aliases.get(name, name)))
        if kept is None:
            continue
        refuse_nonfinite_weights({f"{key} of {name} in the optimizer": value for key, value in kept.items()})
        moment = kept.get("exp_avg")
        if moment is not None and moment.shape != state[name].shape:
            raise SharingError(f"untie: the optimizer state of {name} does not have the parameter's shape")
        spread[number] = {key: value.clone() if torch.is_tensor(value) else value for key, value in kept.items()}
    return {**optimizer, "state": spread, "param_groups": [{**groups[0], "params": list(range(len(order)))}]}


def _without_sharing(args: Any, merged: bool) -> Any:
    """Copy a model's arguments with sharing set to none, and without depth parameters if they were merged."""
    values = dict(args) if isinstance(args, Mapping) else dict(vars(args))
    for name in values:
        if _SHARING_VALUES.fullmatch(name):
            values[name] = None
    values["sharing"] = "none"
    values.update({name: None for name in DEPTH_OPTIONS if merged and name in values})
    values.update({name: None for name in ("sharing_schedule", "unshare_at", "unshare_when") if name in values})
    return values if isinstance(args, Mapping) else type(args)(**values)
