"""The contents of a checkpoint file: tensors and plain values, which torch reads without executing code.

fairseq's meters and tasks add numpy's arrays and scalars; they are written as lists and numbers. Files that were
written with arrays in them are read by the classes below. numpy's own functions are no alternative: a crafted dtype
makes them overwrite memory.
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

# fairseq's checkpoints hold the model's arguments in one (fairseq#5610).
torch.serialization.add_safe_globals([Namespace])


def to_plain(value: Any) -> Any:
    """Replace what torch does not read safely; tensors stay the objects that they are.

    Args:
        value: the content of a checkpoint, or a part of it.

    Returns:
        Arrays as lists, numpy's scalars as Python's, configurations and other containers as dicts, lists and tuples.
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
    """The dtype of an array in a file: numbers only, and nothing of its saved state except the byte order."""

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


# For torch.serialization.safe_globals, while a checkpoint is read. numpy 1 and 2 name their functions differently.
NUMPY_READERS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_NumberType, "numpy.dtype"),
    (_SavedArray, "numpy.ndarray"),
    *((_new_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_read_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def explain_unreadable(error: Exception) -> str:
    """Say why torch did not read a file, without its advice to read an unsafe one unprotected."""
    text = str(error)
    named = re.search(r"GLOBAL (\S+)", text)
    if named or "TorchScript" in text:
        what = f" (it contains {named[1]})" if named else " (it contains a TorchScript program)"
        return f"not read, because it could execute code{what}; allowed: tensors and plain values"
    told = re.search(r"WeightsUnpickler error: (.*)", text)
    reason = (told[1] if told else text.partition("\n")[0]) or type(error).__name__
    return f"not a readable checkpoint ({reason[:200]})"
