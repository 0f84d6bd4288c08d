"""Recognize a process that was forked from one that computed with threads: there the same threads would hang."""

from __future__ import annotations

import os

_first: int | None = None  # the process in which a model was loaded first


def inherited() -> bool:
    """Check whether this process was forked from one that had already loaded a model.

    The first call counts as the load of a model. The threads of OpenMP, MKL and CTranslate2 do not survive a fork, but
    their libraries wait for them.
    """
    global _first
    if _first is None:
        _first = os.getpid()
    return _first != os.getpid()
