"""The environment of a run: package versions, commit of the code, device."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from fairseq_sharing.resources import PACKAGE_DIR

PACKAGES = (
    "fairseq-sharing",
    "torch",
    "fairseq-fixed",
    "numpy",
    "omegaconf",
    "sacrebleu",
    "sacremoses",
    "subword-nmt",
    "sentencepiece",
    "ctranslate2",
)
# NVIDIA, AMD, and NVIDIA under WSL. If none exists, there is no GPU, and torch need not be imported to find out.
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
# Instruction sets for which torch's libraries have kernels of their own, as Linux names them.
_INSTRUCTIONS = ("avx512_bf16", "avx512_fp16", "amx_bf16", "avx_vnni", "bf16", "sve", "sve2", "i8mm")
_CPU_INFO = Path("/proc/cpuinfo")
# A core is idle if its load is below this percentage during an interval, in seconds.
_BUSY, _LOOK = 50.0, 0.2


def versions() -> dict[str, str]:
    """Return the versions of Python and of all installed packages that can affect a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Return the git commit of this code; None outside a clone.

    The suffix ``-dirty`` means that tracked files differ from the commit.
    """
    tracked = _git("ls-files", "--error-unmatch", "__init__.py")
    if tracked is None:
        return None
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def device() -> dict[str, Any]:
    """Return the training device.

    Returns:
        ``kind`` (``cpu`` or ``cuda``), ``name``, ``count`` (GPUs, or CPU cores), ``memory_bytes`` (of one
        GPU, or of the machine) and, for a GPU, the ``cuda`` version.
    """
    if not any(Path(driver).exists() for driver in GPU_DRIVERS):
        return _cpu()
    import torch

    if not torch.cuda.is_available():
        return _cpu()
    properties = torch.cuda.get_device_properties(0)
    return {
        "kind": "cuda",
        "name": properties.name,
        "count": torch.cuda.device_count(),
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
    }


def training_device(threads: int) -> dict[str, Any]:
    """Return the training device with everything that can change the rounding of its results.

    Args:
        threads: number of torch threads per process.

    Returns:
        The entries of `device`, ``threads``, and on a CPU ``instructions``: the instruction set that torch's kernels
        use, and the sets of the processor for which its libraries have other kernels.
    """
    found = {**device(), "threads": threads}
    if found["kind"] == "cpu":
        import torch

        sets = [name for name in _INSTRUCTIONS if name in _cpu_flags()]
        found["instructions"] = " ".join([torch.backends.cpu.get_cpu_capability(), *sets])
    return found


def rounds_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two training devices, as `training_device` returns them, give the same bits."""
    return all(one.get(key) == other.get(key) for key in ("kind", "name", "threads", "instructions", "cuda"))


def usable_cores() -> list[int]:
    """List the CPU cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(os.cpu_count() or 1)]


def cpu_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(usable_cores())


def idle_cores() -> int:
    """Return the number of CPU cores that this process may use and that are idle; at least 1.

    Use it for work whose threads wait for each other, as in torch. With one thread more than there are idle cores, each
    step waits until that thread is scheduled, which makes the work several times slower.
    """
    busy = psutil.cpu_percent(interval=_LOOK, percpu=True)
    return max(1, sum(core >= len(busy) or busy[core] < _BUSY for core in usable_cores()))


def torch_threads() -> int:
    """Return the number of threads for torch: OMP_NUM_THREADS if set, otherwise the number of idle cores."""
    return chosen_threads() or idle_cores()


def chosen_threads() -> int | None:
    """Return the number of threads that OMP_NUM_THREADS sets; None if it sets none."""
    chosen = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(chosen) if chosen.isdecimal() and int(chosen) else None


def _cpu() -> dict[str, Any]:
    return {"kind": "cpu", "name": _cpu_name(), "count": cpu_cores(), "memory_bytes": _memory_bytes()}


def _git(*words: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(PACKAGE_DIR), *words], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _cpu_name() -> str:
    return _cpu_info("model name") or platform.processor() or platform.machine()


def _cpu_flags() -> list[str]:
    return (_cpu_info("flags") or _cpu_info("Features")).split()  # x86, Arm


def _cpu_info(key: str) -> str:
    """Return an entry of Linux's description of the first processor; empty if it has none."""
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    entries = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in entries if name.strip() == key), "")


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
