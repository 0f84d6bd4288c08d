"""Memory of freed tensors on a CPU: by default, glibc returns it to the system, which clears every new page."""

import ctypes
import sys
from functools import cache

# Parameters of mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


@cache
def keep_freed_memory() -> None:
    """Let this process keep freed memory for its next tensors, if its C library is glibc."""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(_M_MMAP_MAX, 0)  # allocate large tensors in the heap
        mallopt(_M_TRIM_THRESHOLD, -1)  # never shrink the heap
