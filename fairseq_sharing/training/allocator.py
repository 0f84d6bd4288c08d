"""Memory of training on a CPU: glibc is told to keep what is freed, and to ask for huge pages."""

_GIB = 1 << 30
# By itself glibc gives a large block back to the system as soon as it is free, and every update waits for the system to
# fill it with zeros again, 4 KiB at a time. So blocks up to 4 GiB come from the heap, which grows by a quarter of a GiB
# and does not shrink.
_SETTINGS = {"mmap_threshold": 4 * _GIB, "trim_threshold": 1024 * _GIB, "top_pad": _GIB // 4, "hugetlb": 1}
# The value of GLIBC_TUNABLES. Other C libraries do not read it.
TUNABLES = ":".join(f"glibc.malloc.{name}={value}" for name, value in _SETTINGS.items())
