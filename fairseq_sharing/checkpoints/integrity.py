"""Detect damaged checkpoints by the checksums that torch stores with every record."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from typing import Any

import torch

from fairseq_sharing.errors import SharingError


def refuse_expanding(path: str | os.PathLike[str]) -> None:
    """Reject a file whose records would unpack to more than its size; torch stores every record as it is.

    Args:
        path: a file, before torch reads it.

    Raises:
        SharingError: a record is compressed, or records overlap.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError):
        return  # torch's reader explains it
    if any(record.filename.endswith("/constants.pkl") for record in records):
        return  # a TorchScript program, whose code is compressed; torch's reader refuses it
    compressed = next((record for record in records if record.compress_type != zipfile.ZIP_STORED), None)
    if compressed is not None or sum(record.file_size for record in records) > os.path.getsize(path):
        name = f"the record {compressed.filename} is compressed" if compressed else "its records overlap"
        raise SharingError(f"{path}: not read, because {name}; allowed: checkpoints as torch writes them")


def refuse_expanded(model: Mapping[str, Any]) -> None:
    """Reject tensors that claim more elements than the file contains, which would exhaust the memory when copied.

    Raises:
        SharingError: a tensor has more elements than its storage.
    """
    for name, tensor in model.items():
        if torch.is_tensor(tensor) and tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise SharingError(
                f"the checkpoint's tensor {name} has the shape {list(tensor.shape)}, but fewer values; "
                "allowed: tensors as fairseq writes them"
            )


def refuse_damaged(path: str | os.PathLike[str]) -> None:
    """Compare each record of a checkpoint with its CRC-32, which torch's own reader does not do.

    Args:
        path: a file that torch can read. Files in the format of torch before 1.6 have no checksums and are not checked.

    Raises:
        SharingError: a record differs from its checksum.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise SharingError(f"{path}: damaged checkpoint ({error}); use another checkpoint") from error
    if damaged is not None:
        raise SharingError(
            f"{path}: damaged checkpoint: the record {damaged} does not match its checksum; use another one"
        )
