"""Where Triton's kernels run, and how they are launched."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, wraps
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor


@cache
def has_kernels(device_type: str) -> bool:
    """Tell whether Triton's kernels run there: on NVIDIA GPUs from Ampere on; on a CPU by its interpreter alone."""
    if find_spec("triton") is None:
        return False
    if device_type == "cuda":
        return torch.version.hip is None and torch.cuda.get_device_capability() >= (8, 0)
    return device_type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"


def on_its_device(launch: Callable[..., Any]) -> Callable[..., Any]:
    """Launch where the first tensor is: Triton goes by the current device, which another GPU may be."""

    @wraps(launch)
    def run(first: Tensor, *others: Any, **named: Any) -> Any:
        with torch.cuda.device_of(first):
            return launch(first, *others, **named)

    return run
