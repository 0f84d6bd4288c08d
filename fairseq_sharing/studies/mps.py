"""Share each GPU between processes with the CUDA Multi-Process Service (MPS).

Source: NVIDIA's manual page nvidia-cuda-mps-control(1). Without a daemon, CUDA programs run unshared: slower, but with
the same results.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

# Client contexts per GPU (before CUDA 13.1).
MOST_CLIENTS = 48
_CONTROL = "nvidia-cuda-mps-control"
_PIPE, _LOG = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
_DEFAULT_PIPE = "/tmp/nvidia-mps"


def is_available() -> bool:
    """Return whether MPS is installed."""
    return shutil.which(_CONTROL) is not None


@contextmanager
def shared_gpus(folder: Path, *, wanted: bool, console: Console) -> Iterator[None]:
    """Run an MPS daemon while runs share GPUs, unless one is running already; set the environment of its clients.

    Args:
        folder: directory for the daemon's pipes and logs.
        wanted: whether several runs share a GPU.
        console: reports a daemon that does not start.
    """
    running = Path(os.environ.get(_PIPE, _DEFAULT_PIPE), "control").exists()
    if not wanted or running or not is_available():
        yield
        return
    variables = {name: str((folder / ".mps" / name.split("_")[2].lower()).resolve()) for name in (_PIPE, _LOG)}
    for path in variables.values():
        Path(path).mkdir(parents=True, exist_ok=True)
    os.environ.update(variables)
    started = subprocess.run([_CONTROL, "-d"], capture_output=True, text=True, check=False)
    if started.returncode:
        reason = (started.stderr or started.stdout).strip()
        console.print(f"{_CONTROL}: {reason}; the runs share each GPU without it", markup=False, soft_wrap=True)
    try:
        yield
    finally:
        if not started.returncode:
            subprocess.run([_CONTROL], input="quit\n", capture_output=True, text=True, check=False)
        for name in variables:
            del os.environ[name]
