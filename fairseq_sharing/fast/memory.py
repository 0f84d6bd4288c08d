"""Memory of large tensors on CPUs: keep freed memory instead of returning it to the system after each tensor."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

# Parameters of glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


@cache
def keep_freed_memory() -> bool:
    """Let the C library reuse freed memory in this process, once.

    By default, glibc gets each large block from the system and returns it when it is freed. The system clears every new
    page, so an activation of 16 MB costs about ten times as long as writing it. Kept memory is reused without that; the
    process keeps the largest size that it has needed.

    Returns:
        Whether the setting was changed; not for C libraries other than glibc.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    # gnu_get_libc_version exists in glibc only; others ignore or lack mallopt.
    if library is None or not hasattr(library, "gnu_get_libc_version"):
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))
    return all(library.mallopt(parameter, value) for parameter, value in settings)
