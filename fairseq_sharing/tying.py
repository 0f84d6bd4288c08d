"""Tying: make the layers of a stack use the same Parameter objects according to a layer map.

A stack keeps N layer modules, each with its own incremental-decoding cache. Only their Parameters are shared. Using one
module at several depths would also share the cache: such a model trains correctly but decodes incorrectly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fairseq_sharing.layer_map import StackSharing
from fairseq_sharing.parameter_sets import find_borrowed, in_scope


def shared_names(layer: nn.Module, scope: tuple[str, ...]) -> Iterator[str]:
    """List the names of a layer's parameters that a map ties.

    Args:
        layer: a layer of a stack.
        scope: ``("layer",)`` for all parameters, or the tied parts.

    Yields:
        Names relative to the layer, for example ``self_attn.k_proj.weight``.
    """
    own = set(depth_names(layer))
    for name, _ in layer.named_parameters(remove_duplicate=False):
        if name not in own and in_scope(name, scope):
            yield name


def depth_names(layer: nn.Module) -> Iterator[str]:
    """List the names of a layer's parameters that belong to the depth and are never shared.

    A layer's ``depth_parameters`` lists them, or the first components of their names.
    """
    own = getattr(layer, "depth_parameters", ())
    for name, _ in layer.named_parameters(remove_duplicate=False):
        if name in own or name.split(".")[0] in own:
            yield name


def tie_layer(layer: nn.Module, owner: nn.Module, scope: tuple[str, ...] = ("layer",)) -> None:
    """Replace a layer's Parameters by those of its owner.

    Args:
        layer: the layer to tie; its previous Parameters are dropped.
        owner: a layer with the same parameter names.
        scope: what to tie.
    """
    for name in list(shared_names(layer, scope)):
        _set_parameter(layer, name, owner.get_parameter(name))


class StackBuilder:
    """Build the layers of a stack in order, tied by a map, allocating storage for owners only.

    fairseq's stacks call ``build_encoder_layer`` once per layer without an index, so the builder counts.

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
            build_layer: builds one layer of the stack with its own parameters.

        Returns:
            The layer, with its owner's Parameters where tied.
        """
        if not self._sharing.lenders(len(self._layers)):
            layer = build_layer()
        else:
            with torch.device("meta"):
                layer = build_layer()
            self._tie(layer)
            if any(parameter.is_meta for parameter in layer.parameters()):
                # Untied parts of the layer need storage and initial values.
                layer = build_layer()
                self._tie(layer)
        self._layers.append(layer)
        return layer

    def _tie(self, layer: nn.Module) -> None:
        """Replace the Parameters that the next layer borrows."""
        for owner, scope in self._sharing.lenders(len(self._layers)).items():
            tie_layer(layer, self._layers[owner], scope)


def tie_stacks(stacks: Mapping[str, Any], sharing: Mapping[str, StackSharing]) -> None:
    """Tie the sets that span stacks, and those that self-attention and cross-attention have in common.

    Args:
        stacks: modules with ``layers``, each tied by its own map, in the order of the model.
        sharing: their maps.
    """
    names = {
        stack: [list(shared_names(layer, sharing[stack].scope)) for layer in module.layers]
        for stack, module in stacks.items()
    }
    for name, owner in find_borrowed(names, sharing).items():
        (stack, own), (lender, lent) = name.split(".layers."), owner.split(".layers.")
        _set_parameter(stacks[stack].layers, own, stacks[lender].layers.get_parameter(lent))


def alias_names(stack: nn.Module, sharing: StackSharing) -> dict[str, str]:
    """Map each borrowed parameter of a stack to the name under its owner.

    Args:
        stack: a module with ``layers``.
        sharing: its map and scope.

    Returns:
        Name of each borrowed parameter -> name under its owner, both relative to the stack, for example
        ``layers.3.fc1.weight`` -> ``layers.0.fc1.weight``.
    """
    aliases = {}
    for depth in range(len(sharing.layer_map)):
        for owner, scope in sharing.lenders(depth).items():
            for name in shared_names(stack.get_submodule(f"layers.{depth}"), scope):
                aliases[f"layers.{depth}.{name}"] = f"layers.{owner}.{name}"
    return aliases


def retie_stack(stack: nn.Module, old: StackSharing, new: StackSharing) -> dict[nn.Parameter, nn.Parameter]:
    """Change the layer map of an existing stack.

    A parameter that becomes independent starts as a copy of the one that the layer used. Unused parameters are dropped.
    The optimizer does not change; see ``follow_model``.

    Args:
        stack: a module with ``layers``, tied by ``old``.
        old: the current map and scope.
        new: the new map and scope, for the same N.

    Returns:
        A map from each new Parameter to the Parameter that it was copied from.
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
    """Refresh the parameter list of fairseq's legacy data-parallel wrapper, which is built only once."""
    module: Any
    for module in wrapped.modules():
        if "per_device_params" in vars(module):
            by_device: dict[torch.device, list[nn.Parameter]] = {}
            for parameter in wrapped.parameters():
                by_device.setdefault(parameter.device, []).append(parameter)
            module.per_device_params = list(by_device.values())
            # Its buffer has the size of the previous model.
            module.buffer_size = min(2**28, sum(parameter.numel() for parameter in wrapped.parameters()))
            module.buffer = None
            return


def count_uses(stack: nn.Module, sharing: StackSharing) -> dict[nn.Parameter, int]:
    """Count the layers that use each shared parameter of a stack."""
    uses: dict[nn.Parameter, int] = {}
    for owner in alias_names(stack, sharing).values():
        parameter = stack.get_parameter(owner)
        uses[parameter] = uses.get(parameter, 1) + 1
    return uses


@contextmanager
def proxy_parameters(stack: nn.Module, names: Iterable[str], requires_grad: bool) -> Iterator[dict[str, nn.Parameter]]:
    """Temporarily replace Parameters by proxies: separate Parameters on the same storage.

    The gradients of the enclosed forward and backward pass go to the proxies, separately for each layer, or are not
    computed.

    Args:
        stack: a module with ``layers``.
        names: the parameters to replace, relative to the stack.
        requires_grad: whether the proxies get gradients.

    Yields:
        The proxies by name.
    """
    kept = {name: stack.get_parameter(name) for name in names}
    proxies = {name: nn.Parameter(used.detach(), requires_grad=requires_grad) for name, used in kept.items()}
    try:
        for name, parameter in proxies.items():
            _set_parameter(stack, name, parameter)
        yield proxies
    finally:
        for name, parameter in kept.items():
            _set_parameter(stack, name, parameter)


def _set_parameter(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    path, _, leaf = name.rpartition(".")
    module.get_submodule(path).register_parameter(leaf, parameter)
