"""Convert the contents of checkpoint files to tensors and plain values, which torch reads without executing code.

fairseq's meters and tasks add numpy arrays and scalars, which are written as lists and numbers. The classes below read
files that contain arrays. numpy's own functions are not safe for this: a crafted dtype makes them overwrite memory.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

# fairseq's checkpoints store the model's arguments in a Namespace (fairseq#5610).
torch.serialization.add_safe_globals([Namespace])


def to_plain(value: Any) -> Any:
    """Replace values that torch does not read safely; tensors are returned as the same objects.

    Args:
        value: the content of a checkpoint, or a part of it.

    Returns:
        Arrays as lists, numpy scalars as Python scalars, configurations and containers as dicts, lists and tuples.
    """
    if torch.is_tensor(value) or isinstance(value, torch.Size):
        return value
    if isinstance(value, np.ndarray | np.generic):
        return to_plain(value.tolist())
    if OmegaConf.is_config(value):
        return to_plain(OmegaConf.to_container(value, resolve=True, enum_to_str=True))
    if isinstance(value, Namespace):
        return Namespace(**to_plain(vars(value)))
    if isinstance(value, OrderedDict):
        ordered = OrderedDict((to_plain(key), to_plain(item)) for key, item in value.items())
        ordered.__dict__.update(value.__dict__)  # the versions of a state dict's modules
        return ordered
    if isinstance(value, dict):
        return {to_plain(key): to_plain(item) for key, item in value.items()}
    for kind in (list, tuple, set):
        if isinstance(value, kind):
            return kind(map(to_plain, value))
    return value


class _NumberType:
    """The dtype of an array in a file: numeric types only; its saved state is ignored except for the byte order."""

    def __init__(self, code: str, align: bool = False, copy: bool = False):
        dtype = np.dtype(str(code))
        if dtype.kind not in "biufc":
            raise ValueError(f"an array of {code!r}; allowed: numbers")
        self.dtype = dtype

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        self.dtype = self.dtype.newbyteorder("=" if order == "|" else order)


class _SavedArray(list):
    """An array in a file, read as a list."""

    def __setstate__(self, state: tuple[int, tuple[int, ...], _NumberType, bool, bytes]) -> None:
        _version, shape, kind, fortran, content = state
        array = np.frombuffer(content, kind.dtype).reshape(shape, order="F" if fortran else "C")
        self[:] = array.tolist()


def _new_array(_kind: type, _shape: tuple[int, ...], _code: bytes) -> _SavedArray:
    return _SavedArray()


def _read_scalar(kind: _NumberType, content: bytes) -> Any:
    return np.frombuffer(content, kind.dtype, count=1)[0].item()


# For torch.serialization.safe_globals when reading a checkpoint. Function names differ between numpy 1 and 2.
NUMPY_READERS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_NumberType, "numpy.dtype"),
    (_SavedArray, "numpy.ndarray"),
    *((_new_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_read_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def explain_unreadable(error: Exception) -> str:
    """Explain why torch did not read a file, without torch's advice to disable the protection."""
    text = str(error)
    named = re.search(r"GLOBAL (\S+)", text)
    if named or "TorchScript" in text:
        what = f" (it contains {named[1]})" if named else " (it contains a TorchScript program)"
        return f"not read, because it could execute code{what}; allowed: tensors and plain values"
    detail = re.search(r"WeightsUnpickler error: (.*)", text)
    reason = (detail[1] if detail else text.partition("\n")[0]) or type(error).__name__
    return f"not a readable checkpoint ({reason[:200]})"
