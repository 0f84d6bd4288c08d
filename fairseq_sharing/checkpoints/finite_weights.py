"""Refuse weights that are NaN or infinite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fairseq_sharing.errors import SharingError


def refuse_nonfinite_weights(state: Mapping[str, Any], name: object = "") -> None:
    """Refuse weights that are NaN or infinite.

    Args:
        state: a state dict; entries that are not floating-point tensors are not checked.
        name: the file, for the error message; empty if the caller adds it.

    Raises:
        SharingError: a tensor has a value that is not finite; the message names the first one.
    """
    for key, value in state.items():
        if not torch.is_tensor(value) or not value.is_floating_point() or not value.numel():
            continue
        # NaN propagates to both ends. One pass without a mask of the tensor's size.
        if not torch.stack(value.detach().aminmax()).isfinite().all():
            bad = value.numel() - int(value.isfinite().sum())
            raise SharingError(
                f"{f'{name}: ' if name else ''}tensor {key} has {bad:,} values of {value.numel():,} that are NaN or "
                "infinite; allowed: finite weights, as in a checkpoint from before the training diverged"
            )
