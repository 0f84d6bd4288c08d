"""Words of a command line, for values that may look like flags."""

from __future__ import annotations

from pathlib import Path


def flag_words(flag: str, value: object) -> list[str]:
    """Return a flag and its value as words of a command line, in one word if the value looks like a flag."""
    return [f"{flag}={value}"] if str(value).startswith("-") else [flag, str(value)]


def path_word(path: Path) -> str:
    """Return a path as a word of a command line that is never taken for a flag."""
    return f"./{path}" if str(path).startswith("-") else str(path)
