"""Build command-line arguments from values that may look like flags."""

from __future__ import annotations

import os
from pathlib import Path

from fairseq_sharing.errors import SharingError


def flag_words(flag: str, value: object) -> list[str]:
    """Return a flag and its value as arguments, joined by ``=`` if the value looks like a flag."""
    return [f"{flag}={value}"] if str(value).startswith("-") else [flag, str(value)]


def path_word(path: Path) -> str:
    """Return a path as an argument that cannot be mistaken for a flag."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def refuse_separator(path: Path, what: str) -> None:
    """Refuse a path that fairseq's commands would split into several paths.

    Args:
        path: the path, as a command will receive it.
        what: name of the path in the error message.

    Raises:
        SharingError: the path contains a colon.
    """
    if os.pathsep in str(path):
        raise SharingError(
            f"{what} {path}: contains {os.pathsep!r}, at which fairseq splits paths; allowed: a path without it"
        )
