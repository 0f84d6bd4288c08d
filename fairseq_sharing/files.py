"""Write files atomically, and read UTF-8 text that is split at line feeds only."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import gzip
import hashlib
import os
import re
import secrets
import shutil
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
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


_FRESH_SECONDS = 2.0  # the time in which a process locks a temporary file that it has created


def remove_stale(found: Iterable[Path]) -> None:
    """Remove temporary files and folders whose process has ended without doing so; a running one holds a lock.

    Args:
        found: temporary files, or folders.
    """
    for path in found:
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.fstat(descriptor).st_mtime > _FRESH_SECONDS:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            finally:
                os.close(descriptor)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Create a folder beside another, for a new version of it; the folder is removed unless it was renamed.

    Args:
        path: the folder that the new one may replace.

    Yields:
        The new folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    stale = path.parent.glob(f"{glob.escape(path.name)}.{'[0-9a-f]' * 8}.tmp")
    remove_stale(folder for folder in stale if folder.is_dir() and not folder.is_symlink())
    temporary = _temporary(path)
    temporary.mkdir()
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with _naming(path):
            yield temporary
    finally:
        os.close(descriptor)
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(new: Path, path: Path) -> None:
    """Give a complete folder its name; a folder that has this name is removed afterwards.

    If two processes replace a folder at once, the last one wins.

    Args:
        new: the new folder.
        path: its name.
    """
    replaced: list[Path] = []
    try:
        while True:
            try:
                new.rename(path)
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
            old = _temporary(path)
            with suppress(FileNotFoundError):  # another process has just moved it
                path.rename(old)
                replaced.append(old)
    except BaseException:
        if replaced and not path.exists():
            replaced.pop().rename(path)
        raise
    finally:
        for old in replaced:
            old.unlink() if old.is_symlink() else shutil.rmtree(old)


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


def check_output_file(path: Path, flag: str) -> None:
    """Refuse an output file that could not be written, before the work whose result it is for.

    Args:
        path: the file; an existing one is replaced.
        flag: the flag that names it, for errors.

    Raises:
        SharingError: the path is a folder or a device, or its folder cannot be created or written to.
    """
    _check_parent(path, flag, path)
    if path.is_dir():
        raise SharingError(f"{flag} {path}: is a folder; allowed: a file")
    if path.exists() and not path.is_file():
        raise SharingError(f"{flag} {path}: is not a regular file; allowed: a file, or omit the flag and redirect")


def refuse_input(path: Path, flag: str, inputs: Iterable[Path]) -> None:
    """Refuse an output file that the command reads, which would be lost.

    Args:
        path: the output.
        flag: the flag that names it, for errors.
        inputs: the files that the command reads; they need not exist.

    Raises:
        SharingError: the output is one of them, also by another path or link.
    """
    for file in inputs:
        if path.exists() and file.exists() and path.samefile(file):
            raise SharingError(f"{flag} {path}: would overwrite the input {file}; allowed: another file")


def check_output_folder(path: Path, flag: str) -> None:
    """Refuse an output folder that could not be written to, before the work whose result it is for.

    Raises:
        SharingError: the path or a parent of it is a file, or the folder cannot be created or written to.
    """
    _check_parent(path / "file", flag, path)


def _check_parent(path: Path, flag: str, given: Path) -> None:
    """Check that a file and its temporary file can be created; errors name the given path."""
    try:
        os.lstat(_temporary(path))
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:  # the name is too long, a folder must not be entered, links form a circle
        raise SharingError(f"{flag} {given}: {error.strerror}; allowed: a path that can be written") from error
    parent = next(folder for folder in Path(os.path.abspath(path)).parents if os.path.lexists(folder))
    if not parent.is_dir():
        raise SharingError(f"{flag} {given}: {parent} is a file; allowed: a path below folders")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise SharingError(f"{flag} {given}: no permission to write to {parent}; allowed: a folder of yours")


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that appears under its name only when it is complete.

    Each process writes to its own temporary file, so two processes that write the same file never mix their bytes. The
    last one to finish wins. Temporary files of processes that were killed are removed.

    Args:
        path: the file to write; its directory is created if missing.

    Yields:
        A binary file object.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    remove_stale(leftovers(path))
    try:
        with _naming(path), temporary.open("xb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the output in the error of a full disk: a write that fails does not name its file."""
    try:
        yield
    except OSError as error:
        if is_full(error) and error.filename is None:
            error.filename = os.fspath(path)
        raise


def is_full(error: OSError) -> bool:
    """Return whether a file could not be written because of the disk, a quota or a limit on its size."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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


MAX_LINE = 1 << 26
"""Maximum bytes of a line: a file without line feeds must not fill the memory."""

_MAX_EXPANSION = 100  # text compresses to about a quarter; a file that unpacks to far more is not text
_FREE_EXPANSION = 1 << 30  # bytes that any archive may unpack to


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
        SharingError: a line is not UTF-8, contains a NUL byte or is too long, or an archive is damaged or incomplete,
            or unpacks to far more than its size.
    """
    name = f"{path}: {member}" if member else str(path)
    try:
        with _open(path, member) as file:
            limit = max(_FREE_EXPANSION, _MAX_EXPANSION * path.stat().st_size)
            yield from decode_lines(_limited(file, name, limit), name)
    except (EOFError, gzip.BadGzipFile, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
        raise SharingError(f"{name}: damaged archive ({error})") from None
    except FileNotFoundError:
        raise SharingError(f"{path}: no such file") from None


def _limited(file: IO[bytes], name: str, limit: int) -> Iterator[bytes]:
    """Read lines until a number of bytes; a longer line arrives in parts."""
    size = 0
    while line := file.readline(MAX_LINE + 1):
        size += len(line)
        if size > limit:
            raise SharingError(
                f"{name}: unpacks to more than {limit >> 20:,} MiB, {_MAX_EXPANSION} times the file's size; "
                "allowed: archives of text"
            )
        yield line


def decode_lines(file: Iterable[bytes], name: str) -> Iterator[str]:
    """Decode the lines of an open binary file.

    Args:
        file: yields lines that end in line feeds.
        name: the name of the file in errors.

    Yields:
        Each line without its line feed.

    Raises:
        SharingError: a line is not UTF-8, contains a NUL byte or is too long.
    """
    for number, line in enumerate(file, start=1):
        if len(line) > MAX_LINE:
            raise SharingError(f"{name}, line {number}: longer than {MAX_LINE >> 20} MiB; allowed: lines of text")
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
            file = _zip_member(stack, path, member)
        else:
            file = _tar_member(stack.enter_context(tarfile.open(path, "r|*")), path, member)
        if (member or path.name).endswith(".gz"):
            file = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=file)))
        yield file


def _zip_member(stack: contextlib.ExitStack, path: Path, member: str) -> IO[bytes]:
    try:
        archive = stack.enter_context(zipfile.ZipFile(path))
        if member not in archive.namelist():
            raise SharingError(f"{path}: contains no file {member}")
        return stack.enter_context(archive.open(member))
    except (NotImplementedError, RuntimeError) as error:  # damaged flags, or a password
        raise zipfile.BadZipFile(str(error)) from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a damaged position
            raise
        raise zipfile.BadZipFile("invalid position") from error


def _tar_member(archive: tarfile.TarFile, path: Path, member: str) -> IO[bytes]:
    """Find a file in a streamed archive, so that no preceding file is decompressed twice."""
    for entry in archive:
        if entry.isfile() and entry.name.removeprefix("./") == member:
            file = archive.extractfile(entry)
            if file is not None:
                return file
    raise SharingError(f"{path}: contains no file {member}")
