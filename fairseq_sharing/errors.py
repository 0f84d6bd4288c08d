"""The error that is raised for all user mistakes."""

from __future__ import annotations


class SharingError(ValueError):
    """An invalid option, file or value; the one-line message names it and what is allowed."""
