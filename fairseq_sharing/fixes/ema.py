"""Fixes for ``--store-ema``: an exponential moving average of a model with shared layers, each tensor once."""

from __future__ import annotations

import functools
import os
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager
from fairseq.models.ema.ema import EMA

from fairseq_sharing.checkpoints.files import load_file
from fairseq_sharing.checkpoints.integrity import refuse_damaged
from fairseq_sharing.checkpoints.plain import NUMPY_READERS
from fairseq_sharing.errors import SharingError


def fix_ema() -> None:
    """Update the averaged weights together with what describes them.

    fairseq passes only the averaged tensors to the model. Without the layer maps, a shared model refuses them. Without
    the versions of the stacks, a pre-norm model of fairseq silently drops its last LayerNorms.
    """
    stock_restore, stock_build, stock_step = EMA.restore, EMA.build_fp32_params, EMA.step

    @functools.wraps(stock_restore)
    def restore(self, state_dict, build_fp32_params=False):
        return stock_restore(self, {**self.model.state_dict(), **state_dict}, build_fp32_params)

    @functools.wraps(stock_build)
    def build_fp32_params(self, state_dict=None):
        state = self.model.state_dict() if state_dict is None else state_dict
        return stock_build(self, {key: value for key, value in state.items() if torch.is_tensor(value)})

    @functools.wraps(stock_step)
    def step(self, new_model, updates=None):
        if getattr(self.model, "admin_pending", False) and not new_model.admin_pending:
            # The first batch has set Admin's residual weights, so the average begins with them.
            self.restore(new_model.state_dict(), build_fp32_params=self.config.ema_fp32)
        return stock_step(self, new_model, updates)

    EMA.restore, EMA.build_fp32_params, EMA.step = restore, build_fp32_params, step
    checkpoint_utils.load_ema_from_checkpoint = load_ema_from_checkpoint


def load_ema_from_checkpoint(path: str) -> dict[str, Any]:
    """Read a checkpoint with its averaged weights as the weights of the model.

    Raises:
        SharingError: the file is not a readable checkpoint, or has no averaged weights.
    """
    local = PathManager.get_local_path(path)
    if os.path.isfile(local):
        state = load_file(local)
        refuse_damaged(local)
    else:  # another storage of fairseq's file interface
        with checkpoint_utils.PathManager.open(path, "rb") as file, torch.serialization.safe_globals(NUMPY_READERS):
            state = torch.load(file, map_location="cpu", weights_only=True)
    averaged = (state.get("extra_state") or {}).get("ema") if isinstance(state, dict) else None
    if not averaged:
        raise SharingError(f"{path}: contains no averaged weights; allowed: a checkpoint of --store-ema")
    state["model"] = {
        name: value.float() if torch.is_tensor(value) and value.dtype == torch.float16 else value
        for name, value in averaged.items()
    }
    return state
