"""Detect a process that was forked after a model had been loaded, in which threaded computation would hang."""

from __future__ import annotations

import os

_first: int | None = None  # id of the process that loaded the first model


def inherited() -> bool:
    """Return whether this process was forked from a process that had loaded a model.

    The first call counts as loading a model. The threads of OpenMP, MKL and CTranslate2 do not survive a fork, but
    their libraries would wait for them.
    """
    global _first
    if _first is None:
        _first = os.getpid()
    return _first != os.getpid()
