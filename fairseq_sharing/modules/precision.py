"""The precision that products run in."""

import torch
from torch import Tensor


def product_dtype(x: Tensor) -> torch.dtype:
    """Tell in which type the matrix products of a tensor run: in autocast's where it is on, else in its own."""
    device = x.device.type
    # The meta device, on which models are counted, has no autocast.
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype
