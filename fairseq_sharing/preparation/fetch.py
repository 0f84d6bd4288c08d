"""Fetch files by URL and SHA-256, and resume interrupted downloads."""

from __future__ import annotations

import glob
import hashlib
import http.client
import re
import string
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import SplitResult, quote, unquote, urlsplit

from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import inside, is_full, sha256, write_text
from fairseq_sharing.preparation.progress import console, progress
from fairseq_sharing.terminal import say

UNKNOWN = "unknown"
"""Marks a checksum in a recipe that is recorded at the first download and verified afterwards."""

ATTEMPTS = 5
TIMEOUT = 30.0  # seconds without receiving data
_BLOCK = 1 << 16  # bytes


def fetch(url: str, digest: str, folder: Path, mirror: str | None = None) -> Path:
    """Fetch a file and verify its checksum.

    Args:
        url: address of the file, or only its name if it is available only from a mirror.
        digest: its SHA-256, or UNKNOWN.
        folder: download folder, with one subfolder per address: complete files under their name, incomplete ones as
            ``<name>.part``, checksums recorded for UNKNOWN as ``<name>.sha256``.
        mirror: local folder, or file:// or http(s):// URL of a folder, with the same file names. A local mirror may
            contain them in subfolders.

    Returns:
        Path of the verified file, in the folder or in a local mirror.

    Raises:
        SharingError: the file cannot be fetched or has the wrong checksum.
    """
    if digest == UNKNOWN:
        digest = recorded_digest(url, folder) or UNKNOWN
    path = _get(url, digest, folder, mirror)
    if digest == UNKNOWN:
        digest = sha256(path)
        write_text(_cached(url, folder, ".sha256"), f"{digest}\n")
        say(console, f"{file_name(url)}: recorded SHA-256 {digest}")
    return path


def recorded_digest(url: str, folder: Path) -> str | None:
    """Read the recorded checksum of a file without a checksum in the recipe.

    Args:
        url: see `fetch`.
        folder: download folder.

    Returns:
        The SHA-256 recorded at the first download from this address; None before that.

    Raises:
        SharingError: the record does not contain a SHA-256.
    """
    record = _cached(url, folder, ".sha256")
    if not record.is_file():
        return None
    digest = record.read_text(encoding="utf-8", errors="replace").strip()
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise SharingError(f"{record}: not a SHA-256; remove the file to record it again")
    return digest


def file_name(url: str) -> str:
    """Return the name of a file in a mirror.

    Args:
        url: see `fetch`.

    Returns:
        The last part of the URL's path, decoded, without the query.

    Raises:
        SharingError: the last part is not a file name.
    """
    name = (unquote(_split(url).path) if "://" in url else url).rpartition("/")[2]
    if name in ("", ".", "..") or "\0" in name:
        raise SharingError(f"{url}: no file name; allowed: an address whose path ends in a file name")
    return name


def _cached(url: str, folder: Path, ending: str = "") -> Path:
    """Return the path of a download. Files with the same name at different addresses have different paths."""
    return inside(folder, f"{hashlib.sha256(url.encode()).hexdigest()[:16]}/{file_name(url)}{ending}")


def _get(url: str, digest: str, folder: Path, mirror: str | None) -> Path:
    path, part = _cached(url, folder), _cached(url, folder, ".part")
    if mirror is not None:
        local = local_path(mirror)
        if local is not None:
            found = _find(local, file_name(url), mirror)
            verify(found, digest)
            return found
        url = mirror.rstrip("/") + "/" + quote(file_name(url))
    elif "/" not in url:
        raise SharingError(f"{url}: not available for download; give a folder that contains it with --mirror")
    elif (local := local_path(url)) is not None:
        verify(local, digest)
        return local
    if path.is_file() and digest in (UNKNOWN, sha256(path)):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    if digest == UNKNOWN:
        # Without a checksum, a partial file of another version would not be detected.
        part.unlink(missing_ok=True)
    resumed = part.is_file()
    download(url, part)
    if resumed and digest != sha256(part):
        # The partial file of an earlier run may belong to another version of the file.
        part.unlink()
        download(url, part)
    try:
        verify(part, digest, url)
    except SharingError:
        part.unlink()
        raise
    part.replace(path)
    return path


def _find(folder: Path, name: str, mirror: str) -> Path:
    """Look for a file in a folder, then in its subfolders."""
    if (folder / name).is_file():
        return folder / name
    found = sorted(folder.glob(f"*/{glob.escape(name)}"))
    if len(found) != 1:
        raise SharingError(f"--mirror {mirror}: contains {'more than one' if found else 'no'} file {name}")
    return found[0]


def local_path(location: str) -> Path | None:
    """Return the local path of a location.

    Args:
        location: a path, or a file:// or http(s):// URL.

    Returns:
        The path; None for http(s).

    Raises:
        SharingError: the URL has another scheme.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", location)
    if scheme is None:
        return Path(location).expanduser()
    if scheme[1].lower() == "file":
        return Path(unquote(_split(location).path))
    if scheme[1].lower() in ("http", "https"):
        return None
    raise SharingError(f"{location}: unsupported location; allowed: a folder, file://, http:// or https://")


def verify(path: Path, digest: str, name: str | None = None) -> None:
    """Verify the checksum of a file.

    Args:
        path: the file.
        digest: its expected SHA-256; UNKNOWN accepts any file.
        name: name of the file in error messages; its path if None.

    Raises:
        SharingError: the file is missing or its checksum differs; the message contains both checksums.
    """
    if not path.is_file():
        raise SharingError(f"{path}: no such file")
    if digest == UNKNOWN:
        return
    actual = sha256(path)
    if actual != digest:
        raise SharingError(f"{name or path}: SHA-256 is {actual}, expected {digest}")


def download(url: str, part: Path) -> None:
    """Download a URL to a file, resuming a partial download.

    Args:
        part: the file; existing content is treated as the beginning of the download.

    Raises:
        SharingError: the server refused, or ATTEMPTS attempts made no progress.
    """
    failures = 0
    while True:
        before = part.stat().st_size if part.is_file() else 0
        try:
            if _continue(url, part, before):
                return
            reason = "the connection was interrupted"
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise SharingError(f"{url}: the server returned {error.code} {error.reason}") from None
            reason = f"the server returned {error.code} {error.reason}"
        except (ValueError, http.client.InvalidURL) as error:  # a host or port that cannot exist
            raise SharingError(f"{url}: not an address ({error})") from None
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and is_full(error):
                raise OSError(error.errno, error.strerror, str(part)) from None
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        failures = 0 if part.is_file() and part.stat().st_size > before else failures + 1
        if failures == ATTEMPTS:
            raise SharingError(
                f"{url}: {reason}, {ATTEMPTS} times in a row; re-run the command to resume, or use --mirror"
            )
        time.sleep(2.0**failures)


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise SharingError(f"{url}: not an address ({error})") from None


def _escaped(url: str) -> str:
    """Escape spaces, control characters and letters outside of ASCII in an address; escapes in it stay as they are."""
    address = _split(url)
    path, query = (quote(part, safe=string.punctuation) for part in (address.path, address.query))
    return address._replace(path=path, query=query).geturl()


def _continue(url: str, part: Path, start: int) -> bool:
    """Request the rest of a file and append it; return whether it is complete."""
    request = urllib.request.Request(_escaped(url), headers={"User-Agent": "fairseq-sharing"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # no more data: the file is complete or too long
            if error.headers.get("Content-Range", "").endswith(f"/{start}"):
                return True
            part.unlink()
            return False
        raise
    with response:
        if response.status != 206:  # the server sends the file from its beginning
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None else None
        with part.open("ab" if start else "wb") as file, progress(f"fetch {part.stem}", total, "bytes") as advance:
            advance(start)
            while block := response.read(_BLOCK):
                file.write(block)
                advance(len(block))
            size = file.tell()
    return total is None or size >= total
