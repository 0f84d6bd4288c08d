"""Availability and launching of Triton kernels."""

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
    """Return whether Triton kernels run on a device: NVIDIA GPUs from Ampere on, and CPUs with Triton's interpreter."""
    if find_spec("triton") is None:
        return False
    if device_type == "cuda":
        return torch.version.hip is None and torch.cuda.get_device_capability() >= (8, 0)
    return device_type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"


def on_its_device(launch: Callable[..., Any]) -> Callable[..., Any]:
    """Launch on the device of the first tensor. Triton uses the current device, which may be another GPU."""

    @wraps(launch)
    def run(first: Tensor, *others: Any, **named: Any) -> Any:
        with torch.cuda.device_of(first):
            return launch(first, *others, **named)

    return run
