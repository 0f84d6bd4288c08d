"""Write files atomically, and read UTF-8 text that is split at line feeds only."""

from __future__ import annotations

import contextlib
import glob
import gzip
import hashlib
import os
import re
import secrets
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from fairseq_sharing.errors import SharingError


def inside(folder: Path, name: object) -> Path:
    """Join a directory and a name that was read from a file; the result must be inside the directory.

    Args:
        folder: the directory.
        name: a relative path; it need not exist.

    Returns:
        The path.

    Raises:
        SharingError: the name is empty, absolute, contains ``..`` or NUL, or a symbolic link points outside.
    """
    if isinstance(name, str) and _is_relative(name):
        path = folder / name
        if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
            return path
    raise SharingError(
        f"path {name!r}: not inside {folder}; allowed: relative paths without .. or links that point outside"
    )


def _is_relative(name: str) -> bool:
    path = Path(name)
    # JSON can encode lone surrogates; no UTF-8 file name contains one.
    unusable = re.search("[\\0\\ud800-\\udfff]", name)
    return not unusable and bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def leftovers(path: Path) -> Iterator[Path]:
    """Find the temporary files that killed processes left behind in ``atomic_write``.

    Args:
        path: the file that was being written.

    Yields:
        Regular files in the same directory.
    """
    for found in path.parent.glob(f"{glob.escape(path.name)}.{'[0-9a-f]' * 8}.tmp"):
        if found.is_file() and not found.is_symlink():
            yield found


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that appears under its name only when it is complete.

    Each process writes to its own temporary file, so two processes that write the same file never mix their bytes. The
    last one to finish wins.

    Args:
        path: the file to write; its directory is created if missing.

    Yields:
        A binary file object.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically, with line feeds unchanged.

    Args:
        path: the file to write; its directory is created if missing.
        text: its content.
    """
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


def sha256(path: Path) -> str:
    """Compute the SHA-256 of a file.

    Args:
        path: the file.

    Returns:
        64 hexadecimal digits.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_lines(path: Path, member: str = "") -> Iterator[str]:
    """Read the lines of a text file, split at line feeds only.

    Python's text mode also splits at carriage returns, and ``str.splitlines`` at U+2028 and other characters. Either
    would misalign the two sides of a parallel corpus.

    Args:
        path: a UTF-8 file, or an archive of such files.
        member: name of the file inside a tar or zip archive. A file or member whose name ends in ``.gz`` is
            decompressed with gzip.

    Yields:
        Each line without its line feed.

    Raises:
        SharingError: a line is not UTF-8 or contains a NUL byte, or an archive is damaged or incomplete.
    """
    name = f"{path}: {member}" if member else str(path)
    try:
        with _open(path, member) as file:
            yield from decode_lines(file, name)
    except (EOFError, gzip.BadGzipFile, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
        raise SharingError(f"{name}: damaged archive ({error})") from None
    except FileNotFoundError:
        raise SharingError(f"{path}: no such file") from None


def decode_lines(file: Iterable[bytes], name: str) -> Iterator[str]:
    """Decode the lines of an open binary file.

    Args:
        file: yields lines that end in line feeds.
        name: the name of the file in errors.

    Yields:
        Each line without its line feed.

    Raises:
        SharingError: a line is not UTF-8 or contains a NUL byte.
    """
    for number, line in enumerate(file, start=1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            byte = line[error.start]
            raise SharingError(
                f"{name}, line {number}: not UTF-8 (byte 0x{byte:02x} at position {error.start + 1})"
            ) from None
        if "\0" in text:
            raise SharingError(f"{name}, line {number}: contains a NUL byte; allowed: plain UTF-8 text")
        yield text.removesuffix("\n")


@contextmanager
def _open(path: Path, member: str) -> Iterator[IO[bytes]]:
    with contextlib.ExitStack() as stack:
        file: IO[bytes]
        if not member:
            file = stack.enter_context(path.open("rb"))
        elif path.name.endswith(".zip"):
            archive = stack.enter_context(zipfile.ZipFile(path))
            if member not in archive.namelist():
                raise SharingError(f"{path}: contains no file {member}")
            file = stack.enter_context(archive.open(member))
        else:
            file = _tar_member(stack.enter_context(tarfile.open(path, "r|*")), path, member)
        if (member or path.name).endswith(".gz"):
            file = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=file)))
        yield file


def _tar_member(archive: tarfile.TarFile, path: Path, member: str) -> IO[bytes]:
    """Find a file in a streamed archive, so that no preceding file is decompressed twice."""
    for entry in archive:
        if entry.isfile() and entry.name.removeprefix("./") == member:
            file = archive.extractfile(entry)
            if file is not None:
                return file
    raise SharingError(f"{path}: contains no file {member}")
