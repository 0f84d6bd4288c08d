"""Tensors with shapes but no values, and the bytes that they would occupy.

torch operations run on them as on a CPU, with the same kernels, autocast and autograd, but use no time or memory.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import weakref
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fairseq_sharing.errors import SharingError

_aten = torch.ops.aten


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """Keep torch from importing its compiler, which takes a second, only to exclude functions from compilation."""
    name = "torch._dynamo"
    if name in sys.modules:
        yield
        return
    stub = ModuleType(name)
    stub.disable = lambda function, *_, **__: function  # type: ignore[attr-defined]
    sys.modules[name] = stub
    try:
        yield
    finally:
        del sys.modules[name]


class ShapeOnlyTensor(Tensor):
    """A CPU tensor without values. torch's meta device also has shapes only, but does not run the CPU kernels."""

    meta: Tensor

    @staticmethod
    def __new__(cls, meta: Tensor) -> ShapeOnlyTensor:
        """Make a CPU tensor with the shape of a tensor on the meta device."""
        made = Tensor._make_wrapper_subclass(
            cls,
            meta.size(),
            strides=meta.stride(),
            storage_offset=meta.storage_offset(),
            dtype=meta.dtype,
            device=torch.device("cpu"),
        )
        made.meta = meta
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Raise an error: these tensors compute only in the context of ``Allocations``."""
        raise AssertionError(f"{func} on a ShapeOnlyTensor, outside Allocations")

    # These tensors differ from others only below autograd.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


class Allocations(TorchDispatchMode):
    """Make every tensor created in its context a ``ShapeOnlyTensor``; count the allocated bytes and their peak.

    Sizes that depend on values assume that the batch has padding and that no tensor is smaller because of it. For an
    adaptive softmax or input they assume every token in every band, which is an upper bound.

    Attributes:
        alive: bytes of all storages in use.
        peak: the maximum of ``alive`` since ``peak`` was last set.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run an operation without values."""
        kwargs = kwargs or {}
        changes_values_only, takes_device = _traits(func)
        if changes_values_only:
            return args[0]
        options = {name: _map_tensors(_to_meta, value) for name, value in kwargs.items()}
        if takes_device:
            options["device"] = "meta"
        made = _WITHOUT_VALUES.get(func, func)(*_map_tensors(_to_meta, args), **options)
        return kwargs["out"] if "out" in kwargs else _map_tensors(self._count, made)

    def _count(self, meta: Tensor) -> Tensor:
        storage = meta.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.alive += storage.nbytes()
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._free, key)
        return ShapeOnlyTensor(meta)

    def _free(self, key: int) -> None:
        self.alive -= self._sizes.pop(key)


def _map_tensors(change: Callable[[Tensor], Tensor], found: Any) -> Any:
    """Apply a function to every tensor in an operation's arguments or results, including tuples and lists."""
    if isinstance(found, Tensor):
        return change(found)
    if type(found) in (tuple, list):
        return type(found)(_map_tensors(change, inner) for inner in found)
    return found


def _to_meta(x: Tensor) -> Tensor:
    return x.meta if isinstance(x, ShapeOnlyTensor) else x.to("meta")


@functools.cache
def _traits(func: Any) -> tuple[bool, bool]:
    """Return whether an operation only changes the values of its first argument, and whether it takes a device."""
    arguments = func._schema.arguments
    in_place = bool(arguments) and arguments[0].alias_info is not None and arguments[0].alias_info.is_write
    changes_values_only = in_place and torch.Tag.inplace_view not in func.tags
    return changes_values_only, any(argument.name == "device" for argument in arguments)


def _item(x: Tensor) -> bool:
    if x.dtype != torch.bool:
        raise SharingError("the sizes of its tensors depend on values that exist only in training")
    return True


def _nonzero(x: Tensor) -> Tensor:
    return x.new_empty((x.numel(), x.dim()), dtype=torch.int64)


def _index(x: Tensor, indices: list[Tensor | None]) -> Tensor:
    given: list[Tensor | None] = []
    for index in indices:
        given.extend(_nonzero(index).unbind(1) if index is not None and index.dtype == torch.bool else [index])
    return _aten.index.Tensor(x, given)


def _layer_norm_backward(_gradient: Tensor, x: Tensor, _shape: Any, _mean: Tensor, _rstd: Tensor, *rest: Any) -> Any:
    weight, bias, wanted = rest
    return tuple(torch.empty_like(of) if want else None for of, want in zip((x, weight, bias), wanted, strict=True))


def _pointwise(func: Any) -> Callable[..., Tensor]:
    def make(x: Tensor, other: Any, **options: Any) -> Tensor:
        alike = isinstance(other, Tensor) and x.shape == other.shape and x.dtype == other.dtype
        return torch.empty_like(x) if alike else func(x, other, **options)

    return make


_WITHOUT_VALUES: dict[Any, Callable[..., Any]] = {
    _aten._local_scalar_dense.default: _item,
    _aten.nonzero.default: _nonzero,
    _aten.index.Tensor: _index,
    # torch also derives these sizes, but this takes half of the time of a step.
    _aten.native_layer_norm_backward.default: _layer_norm_backward,
    _aten.add.Tensor: _pointwise(_aten.add.Tensor),
    _aten.mul.Tensor: _pointwise(_aten.mul.Tensor),
}


class Replaced(TorchFunctionMode):
    """Replace functions of torch by others."""

    def __init__(self, replacements: dict[Callable[..., Any], Callable[..., Any]]):
        super().__init__()
        self._replacements = replacements

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Call a function or its replacement."""
        return self._replacements.get(func, func)(*args, **(kwargs or {}))
