"""Tying: make the layers of a stack use the same Parameter objects, as a layer map says.

A stack keeps N layer modules ("shells"), each with its own incremental-decoding cache; only their Parameters are
shared. Using one module at several depths instead would share the cache too: it trains well and decodes wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fairseq_sharing.layer_map import StackSharing

# Parts of a fairseq Transformer layer by the first word of a parameter's name.
_PART_OF = {
    "self_attn": "self_attn",
    "attn_ln": "layer_norm",
    "c_attn": "self_attn",
    "encoder_attn": "encoder_attn",
    "ffn": "ffn",
    "fc1": "ffn",
    "fc2": "ffn",
    "w_resid": "ffn",
    "ffn_layernorm": "layer_norm",
    "self_attn_layer_norm": "layer_norm",
    "encoder_attn_layer_norm": "layer_norm",
    "final_layer_norm": "layer_norm",
}


def shared_names(layer: nn.Module, scope: tuple[str, ...]) -> Iterator[str]:
    """Name the parameters of a layer that a map ties.

    A layer lists the first words of what belongs to its depth, and is never shared, in ``depth_parameters``.

    Args:
        layer: a layer of a stack.
        scope: ``("layer",)`` for all, or the tied parts.

    Yields:
        Names relative to the layer, as in ``self_attn.k_proj.weight``.
    """
    own = getattr(layer, "depth_parameters", ())
    for name, _ in layer.named_parameters(remove_duplicate=False):
        if name.split(".")[0] not in own and in_scope(name, scope):
            yield name


def in_scope(name: str, scope: tuple[str, ...]) -> bool:
    """Tell whether a scope ties a parameter, by its name within the layer."""
    return scope == ("layer",) or part_of(name) in scope


def part_of(name: str) -> str | None:
    """Tell which part of a layer a parameter belongs to, by its name within the layer: None for an unknown one."""
    return _PART_OF.get(name.split(".")[0])


def tie_layer(layer: nn.Module, owner: nn.Module, scope: tuple[str, ...] = ("layer",)) -> None:
    """Let a layer use its owner's Parameter objects.

    Args:
        layer: the shell that gets them; what it had is dropped.
        owner: a layer with the same parameter names.
        scope: what is tied.
    """
    for name in list(shared_names(layer, scope)):
        _set_parameter(layer, name, owner.get_parameter(name))


class StackBuilder:
    """Build the layers of a stack one after the other, tied by a map, with storage for owners only.

    fairseq's stacks call ``build_encoder_layer`` once a layer and do not say which; this counts.

    Args:
        sharing: the stack's map and scope.
    """

    def __init__(self, sharing: StackSharing):
        self._sharing = sharing
        self._layers: list[nn.Module] = []

    @property
    def done(self) -> bool:
        """Whether all N layers are built."""
        return len(self._layers) == len(self._sharing.layer_map)

    def build(self, build_layer: Callable[[], nn.Module]) -> nn.Module:
        """Build the next layer.

        Args:
            build_layer: makes one layer of the stack, with parameters of its own.

        Returns:
            The layer: its owner's Parameters in all that is tied.
        """
        layer_map = self._sharing.layer_map
        depth = len(self._layers)
        owner = layer_map.index(layer_map[depth])
        if owner == depth:
            layer = build_layer()
        else:
            with torch.device("meta"):
                layer = build_layer()
            tie_layer(layer, self._layers[owner], self._sharing.scope)
            if any(parameter.is_meta for parameter in layer.parameters()):
                # Part of the layer is its own: that needs storage and its initial values.
                layer = build_layer()
                tie_layer(layer, self._layers[owner], self._sharing.scope)
        self._layers.append(layer)
        return layer


def alias_names(stack: nn.Module, sharing: StackSharing) -> dict[str, str]:
    """Name what layers of a stack borrow.

    Args:
        stack: a module with ``layers``.
        sharing: its map and scope.

    Returns:
        Name of each borrowed parameter -> name under its owner, both relative to the stack
        (``layers.3.fc1.weight`` -> ``layers.0.fc1.weight``).
    """
    aliases = {}
    for depth, group in enumerate(sharing.layer_map):
        owner = sharing.layer_map.index(group)
        if owner != depth:
            for name in shared_names(stack.get_submodule(f"layers.{depth}"), sharing.scope):
                aliases[f"layers.{depth}.{name}"] = f"layers.{owner}.{name}"
    return aliases


def retie_stack(stack: nn.Module, old: StackSharing, new: StackSharing) -> dict[nn.Parameter, nn.Parameter]:
    """Change the map of a built stack.

    A parameter that becomes a layer's own starts as a copy of what the layer used; one that is no longer used is
    dropped. The optimizer is not touched: ``follow_model`` does that.

    Args:
        stack: a module with ``layers``, tied by ``old``.
        old: the present map and scope.
        new: the wanted ones, of the same N.

    Returns:
        Each new Parameter -> the one whose values it started from.
    """
    aliases = alias_names(stack, new)
    origins = {}
    for name in alias_names(stack, old):
        if name not in aliases:
            used = stack.get_parameter(name)
            own = nn.Parameter(used.detach().clone(), requires_grad=used.requires_grad)
            origins[own] = used
            _set_parameter(stack, name, own)
    for name, owner_name in aliases.items():
        _set_parameter(stack, name, stack.get_parameter(owner_name))
    return origins


def refresh_data_parallel(wrapped: nn.Module) -> None:
    """List the parameters anew in fairseq's legacy data-parallel wrapper, which lists them once, when it is made."""
    module: Any
    for module in wrapped.modules():
        if "per_device_params" in vars(module):
            by_device: dict[torch.device, list[nn.Parameter]] = {}
            for parameter in wrapped.parameters():
                by_device.setdefault(parameter.device, []).append(parameter)
            module.per_device_params = list(by_device.values())
            # Its bucket is as large as the model was.
            module.buffer_size = min(2**28, sum(parameter.numel() for parameter in wrapped.parameters()))
            module.buffer = None
            return


def count_uses(stack: nn.Module, sharing: StackSharing) -> dict[nn.Parameter, int]:
    """Count the layers that use each parameter of a stack's layers that more than one uses."""
    uses: dict[nn.Parameter, int] = {}
    for owner in alias_names(stack, sharing).values():
        parameter = stack.get_parameter(owner)
        uses[parameter] = uses.get(parameter, 1) + 1
    return uses


@contextmanager
def stand_ins(stack: nn.Module, names: Iterable[str], requires_grad: bool) -> Iterator[dict[str, nn.Parameter]]:
    """Let layers run for a while with Parameters of their own on the storage that they share.

    The gradients of one forward and backward pass inside land in the stand-ins, by layer, or nowhere.

    Args:
        stack: a module with ``layers``.
        names: the parameters that get a stand-in, relative to the stack.
        requires_grad: whether the stand-ins get gradients.

    Yields:
        The stand-ins by name.
    """
    kept = {name: stack.get_parameter(name) for name in names}
    made = {name: nn.Parameter(used.detach(), requires_grad=requires_grad) for name, used in kept.items()}
    try:
        for name, parameter in made.items():
            _set_parameter(stack, name, parameter)
        yield made
    finally:
        for name, parameter in kept.items():
            _set_parameter(stack, name, parameter)


def _set_parameter(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    path, _, leaf = name.rpartition(".")
    module.get_submodule(path).register_parameter(leaf, parameter)
