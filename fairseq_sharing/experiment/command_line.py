"""Build command-line arguments from values that may look like flags."""

from __future__ import annotations

from pathlib import Path


def flag_words(flag: str, value: object) -> list[str]:
    """Return a flag and its value as arguments, joined by ``=`` if the value looks like a flag."""
    return [f"{flag}={value}"] if str(value).startswith("-") else [flag, str(value)]


def path_word(path: Path) -> str:
    """Return a path as an argument that cannot be mistaken for a flag."""
    return f"./{path}" if str(path).startswith("-") else str(path)
