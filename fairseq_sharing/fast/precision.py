"""The precision that products run in."""

import logging
from functools import cache

import torch
from torch import Tensor

logger = logging.getLogger(__name__)
_BF16_UNITS = ("amx_bf16", "avx512_bf16")  # names of torch.cpu.get_capabilities


def product_dtype(x: Tensor) -> torch.dtype:
    """Tell in which type the matrix products of a tensor run: in autocast's where it is on, else in its own."""
    device = x.device.type
    # The meta device, on which models are counted, has no autocast.
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


@cache
def warn_of_slow_bf16(device: str) -> None:
    """Say, once, that a processor has no units for bf16: its products are emulated there.

    Args:
        device: type of the device, ``cpu`` or ``cuda``.
    """
    # Older versions of torch do not tell.
    found: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    if device == "cpu" and found.get("architecture") == "x86_64" and not any(map(found.get, _BF16_UNITS)):
        logger.warning("--precision bf16: this processor has no units for it (AMX, AVX512-BF16); fp32 is faster here")
