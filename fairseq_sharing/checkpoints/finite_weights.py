"""Reject weights that are NaN or infinite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fairseq_sharing.errors import SharingError


def refuse_nonfinite_weights(state: Mapping[str, Any], name: object = "") -> None:
    """Reject weights that are NaN or infinite.

    Args:
        state: a state dict; only floating-point tensors are checked.
        name: the file, for the error message; empty if the caller adds it.

    Raises:
        SharingError: a tensor has a value that is not finite; the message names the first such tensor.
    """
    for key, value in state.items():
        if not torch.is_tensor(value) or not value.is_floating_point() or not value.numel():
            continue
        # NaN propagates to minimum and maximum. This needs one pass and no mask of the tensor's size.
        if not torch.stack(value.detach().aminmax()).isfinite().all():
            bad = value.numel() - int(value.isfinite().sum())
            raise SharingError(
                f"{f'{name}: ' if name else ''}tensor {key} has {bad:,} of {value.numel():,} values that are NaN or "
                "infinite; allowed: finite weights; use a checkpoint from before training diverged"
            )
