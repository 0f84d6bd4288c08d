"""Read checkpoint files without executing code, and write them atomically."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from fairseq_sharing.checkpoints.integrity import refuse_damaged, refuse_expanded, refuse_expanding
from fairseq_sharing.checkpoints.plain import NUMPY_READERS, explain_unreadable, to_plain
from fairseq_sharing.checkpoints.recorded_state import refuse_incomplete
from fairseq_sharing.checkpoints.senseless_arguments import refuse_senseless_arguments
from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import atomic_write


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint file to the CPU, without executing any code in it.

    Raises:
        SharingError: the file does not exist, is damaged, cannot be read safely by torch, or contains no model whose
            tensors and arguments match its recorded layer maps.
    """
    checkpoint = load_file(path)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("model"), Mapping):
        raise SharingError(f"{path}: not a fairseq checkpoint: it contains no model")
    refuse_damaged(path)
    try:
        refuse_expanded(checkpoint["model"])
        refuse_incomplete(checkpoint["model"])
        refuse_senseless_arguments(checkpoint)
    except SharingError as error:
        raise SharingError(f"{path}: {error}") from error
    return checkpoint


def load_file(path: str | os.PathLike[str]) -> Any:
    """Read a file written by torch to the CPU, without executing any code in it.

    Raises:
        SharingError: the file does not exist or cannot be read safely by torch.
    """
    try:
        refuse_expanding(path)
        # torch warns of pickle protocols above 2, and then refuses the file.
        with torch.serialization.safe_globals(NUMPY_READERS), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SharingError(f"{path}: no such checkpoint") from None
    except IsADirectoryError:
        raise SharingError(f"{path}: a directory; allowed: a checkpoint file") from None
    except SharingError:
        raise
    except Exception as error:  # torch's reader raises many exceptions for damaged files
        raise SharingError(f"{path}: {explain_unreadable(error)}") from error


def save_atomically(obj: Any, path: str | os.PathLike[str]) -> None:
    """Write a checkpoint to a temporary file, flush it to disk and rename it, so that it is never incomplete.

    A missing folder is created.

    Raises:
        SharingError: an object in it is neither a tensor nor a plain value, so it could not be read again.
    """
    with atomic_write(Path(path)) as file:
        write_plain(obj, file, path)
    flush_directory(path)


def write_plain(obj: Any, file: IO[bytes], path: str | os.PathLike[str]) -> None:
    """Write a checkpoint as tensors and plain values to an open, named file.

    Args:
        obj: the checkpoint.
        file: the file, usually under a temporary name.
        path: the name that the file will get, for the error.

    Raises:
        SharingError: something in it is neither a tensor nor a plain value, so that it could not be read again.
    """
    try:
        torch.save(to_plain(obj), file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # a full disk, which torch reports as an "unexpected pos"
            raise OSError(error.__context__.errno, error.__context__.strerror, os.fspath(path)) from None
        raise
    file.flush()
    if unsafe := torch.serialization.get_unsafe_globals_in_checkpoint(file.name):
        raise SharingError(
            f"{path}: not written, because it could not be read again: it would contain {', '.join(sorted(unsafe))}; "
            "allowed: tensors and plain values"
        )


def copy_atomically(source: str, target: str) -> None:
    """Copy a file atomically, so that the target is never incomplete."""
    with open(source, "rb") as original, atomic_write(Path(target)) as file:
        shutil.copyfileobj(original, file, 1 << 24)
    flush_directory(target)


def flush_directory(path: str | os.PathLike[str]) -> None:
    """Flush the folder of a file, so that its new name survives a power failure."""
    descriptor = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
