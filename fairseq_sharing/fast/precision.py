"""The precision of matrix products."""

import logging
from functools import cache

import torch
from torch import Tensor

logger = logging.getLogger(__name__)
_BF16_UNITS = ("amx_bf16", "avx512_bf16")  # names of torch.cpu.get_capabilities


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the type of a tensor's matrix products: autocast's if enabled, otherwise the tensor's."""
    device = x.device.type
    # The meta device, which is used to count models, has no autocast.
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


@cache
def warn_of_slow_bf16(device: str) -> None:
    """Warn, once, if the processor has no bf16 units and therefore emulates bf16 products.

    Args:
        device: type of the device, ``cpu`` or ``cuda``.
    """
    # Older versions of torch do not report this.
    found: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    if device == "cpu" and found.get("architecture") == "x86_64" and not any(map(found.get, _BF16_UNITS)):
        logger.warning(
            "--precision bf16: this processor has no bf16 units (AMX, AVX512-BF16); --precision fp32 is faster"
        )
