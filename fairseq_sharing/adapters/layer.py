"""Add depth parameters to a fairseq Transformer layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn

from fairseq_sharing.adapters.effective import ATTRIBUTE, effective_weights
from fairseq_sharing.adapters.kinds import DepthKinds
from fairseq_sharing.parameter_sets import part_of

INITIAL_STD = 0.02
# One thread at a time: another one would restore the shared weights of a layer that is still used.
_HIDING = RLock()


class DepthParameters(nn.Module):
    """The adapters and factors of one depth.

    Their names are those of the matrices: ``lora.self_attn.q_proj.a`` (r x d_in), ``lora.self_attn.q_proj.b``
    (d_out x r), ``scale.self_attn.k_proj`` (d_out) and ``scale.fc2`` (d_in).

    Args:
        layer: the layer that they belong to.
        kinds: which of them to create.
    """

    # The weights for evaluation, computed once.
    merged: _Merged | None = None

    def __init__(self, layer: nn.Module, kinds: DepthKinds):
        super().__init__()
        # A layer may lack the attention to a source, or the feed-forward network.
        modules: dict[str, Any] = {name: m for name, m in layer.named_modules() if hasattr(m, "weight")}
        for name in kinds.adapted():
            if name in modules:
                d_out, d_in = modules[name].weight.shape
                a, b = torch.empty(kinds.rank, d_in), torch.zeros(d_out, kinds.rank)
                nn.init.normal_(a, std=INITIAL_STD)
                _register(self, f"lora.{name}.a", a)
                _register(self, f"lora.{name}.b", b)
        for name in kinds.scaled():
            if name in modules:
                size = modules[name].in_features if name == "fc2" else modules[name].out_features
                _register(self, f"scale.{name}", torch.ones(size))


def _register(module: nn.Module, name: str, value: Tensor) -> None:
    """Register a parameter under a name with dots, which name nested modules."""
    *path, leaf = name.split(".")
    for part in path:
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    module.register_parameter(leaf, nn.Parameter(value))


def add_depth_parameters(layer: nn.Module, kinds: DepthKinds) -> nn.Module:
    """Add depth parameters to a new layer. Call this before it is tied and wrapped to recompute its activations.

    Biases and norms of a depth keep their names and are excluded from tying. Adapters and factors are in ``depth``.

    Args:
        layer: a fairseq Transformer layer; it changes.
        kinds: the depth parameters.

    Returns:
        The layer.
    """
    own = [name for name, _ in layer.named_parameters() if _belongs(name, kinds)]
    if kinds.rank or kinds.scale:
        layer.add_module(ATTRIBUTE, DepthParameters(layer, kinds))
        own.append(ATTRIBUTE)
        setattr(layer, "forward", with_effective_weights(layer, layer.forward))  # noqa: B010  mypy rejects a method
    setattr(layer, "depth_parameters", (*getattr(layer, "depth_parameters", ()), *own))  # noqa: B010
    return layer


def _belongs(name: str, kinds: DepthKinds) -> bool:
    return (kinds.bias and name.endswith(".bias")) or (kinds.norm and part_of(name) == "layer_norm")


def with_effective_weights(layer: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function use the effective weights of a layer; return it unchanged if the layer has no adapters."""
    return partial(_run, layer, forward) if hasattr(layer, ATTRIBUTE) else forward


def _run(layer: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with effective(layer):
        return forward(*args, **kwargs)


@contextmanager
def effective(*layers: nn.Module) -> Iterator[None]:
    """Let layers use their effective weights instead of the shared ones.

    fairseq's self-attention reads the weights of its projections in training and calls the projections in incremental
    decoding. Both find the effective weights, because an attribute of a module hides its parameter of the same name.
    Names, ties and the state dict do not change.

    Args:
        layers: layers; those without adapters are ignored.
    """
    hidden: list[tuple[dict[str, Any], str]] = []
    with _HIDING:
        try:
            for layer in layers:
                for name, value in _weights(layer).items():
                    path, _, leaf = name.rpartition(".")
                    attributes = vars(layer.get_submodule(path))
                    if leaf not in attributes:
                        attributes[leaf] = value
                        hidden.append((attributes, leaf))
            yield
        finally:
            for attributes, leaf in hidden:
                del attributes[leaf]


def count_merged(layers: Iterable[nn.Module]) -> int:
    """Count the tensors that layers share but that differ by depth once adapters and factors are merged."""
    uses: dict[nn.Parameter, int] = {}
    for layer in layers:
        for name in _weights(layer):
            parameter = layer.get_parameter(name)
            uses[parameter] = uses.get(parameter, 0) + 1
    return sum(count - 1 for count in uses.values())


def _weights(layer: nn.Module) -> Mapping[str, Tensor]:
    """Return the effective weights of a layer: computed in every training step, and once for evaluation."""
    depth: Any = getattr(layer, ATTRIBUTE, None)
    if depth is None:
        return {}
    if layer.training or torch.is_grad_enabled():
        depth.merged = None
        return effective_weights(dict(layer.named_parameters(remove_duplicate=False)))
    if depth.merged is None or not depth.merged.is_current():
        depth.merged = _Merged(layer)
    return depth.merged.weights


class _Merged:
    """The effective weights of a layer, with the parameters that they were computed from."""

    def __init__(self, layer: nn.Module):
        self.weights = effective_weights(dict(layer.named_parameters(remove_duplicate=False)))
        self._sources = []
        for path, module in layer.named_modules():
            for leaf, parameter in module._parameters.items():
                name = f"{path}.{leaf}"
                if parameter is not None and (name in self.weights or path.split(".")[0] == ATTRIBUTE):
                    self._sources.append((module._parameters, leaf, parameter, _version(parameter)))

    def is_current(self) -> bool:
        """Return whether the layer has the same parameters with the same values as then."""
        return all(
            parameters[leaf] is parameter and _version(parameter) == version
            for parameters, leaf, parameter, version in self._sources
        )

    def __deepcopy__(self, _memo: dict[int, Any]) -> None:
        """Copy nothing: a copied layer computes its own."""


def _version(parameter: Tensor) -> tuple[int, int]:
    # A conversion to another device or type replaces the storage; every other change in place counts a version.
    return parameter.data_ptr(), 0 if parameter.is_inference() else parameter._version
