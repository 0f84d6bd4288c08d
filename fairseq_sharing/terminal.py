"""Print text from files, results and users on a terminal without interpreting it."""

from __future__ import annotations

import logging
import re
from typing import Any

import rich.console
from rich.text import Text

# C0, DEL and C1, which terminals execute; line feeds and tabs are kept.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def visible(text: str) -> str:
    """Replace control characters by visible escapes such as ``\\x1b``, so that no terminal executes them."""
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def one_line(text: object) -> str:
    """Return text as one line without control characters or text that cannot be encoded."""
    line = " ".join(str(text).encode("utf-8", "backslashreplace").decode().splitlines())
    return visible(line.replace("\t", " "))


class Console(rich.console.Console):
    """rich's console for text from files: no markup unless requested, no emoji, and visible control characters."""

    def __init__(self, *, markup: bool = False, **options: Any):
        super().__init__(markup=markup, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Convert text as rich does, with visible control characters."""
        return super().render_str(visible(text), **options)

    def print_json(self, json: str | None = None, *, ensure_ascii: bool = True, **options: Any) -> None:
        """Print JSON as rich does, with other characters than ASCII escaped."""
        super().print_json(json, ensure_ascii=ensure_ascii, **options)


def say(console: rich.console.Console, text: str, style: str | None = None) -> None:
    """Print text as it is: without markup, highlighting and line breaks."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


class LogFormatter(logging.Formatter):
    """Print each log message as one line."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Format the record; a traceback, if any, keeps its lines."""
        return visible(super().format(record))
