"""The one error that a user's mistake raises."""

from __future__ import annotations


class SharingError(ValueError):
    """A bad option, file or value, told in one line that names it and says what is allowed."""
