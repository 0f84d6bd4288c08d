"""Consoles that print text as it is."""

from __future__ import annotations

from rich.console import Console


def make_console(*, stderr: bool = False, soft_wrap: bool = False, highlight: bool = True) -> Console:
    """Create a console in which square brackets and colons of a path or name have no special meaning.

    Args:
        stderr: print to standard error.
        soft_wrap: do not wrap lines.
        highlight: color numbers and paths.
    """
    return Console(stderr=stderr, soft_wrap=soft_wrap, highlight=highlight, markup=False, emoji=False)
