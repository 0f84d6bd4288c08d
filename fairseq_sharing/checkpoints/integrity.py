"""Detect damaged checkpoints by the checksums that torch stores with every record."""

from __future__ import annotations

import os
import zipfile

from fairseq_sharing.errors import SharingError


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
