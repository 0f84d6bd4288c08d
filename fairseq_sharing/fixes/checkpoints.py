"""Fixes for checkpoints: atomic writes of plain values, safe reading, and resuming despite a damaged file."""

from __future__ import annotations

import functools
import logging
import os

import numpy as np
import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager
from fairseq.logging import meters

from fairseq_sharing.checkpoints import files, resuming
from fairseq_sharing.checkpoints.integrity import refuse_damaged, refuse_expanding
from fairseq_sharing.checkpoints.plain import NUMPY_READERS, to_plain

logger = logging.getLogger(__name__)


class _AtomicPathManager(PathManager):
    """fairseq's file access with atomic copies."""

    @staticmethod
    def copy(src_path: str, dst_path: str, overwrite: bool = False) -> bool:
        if os.path.exists(dst_path) and not overwrite:
            return False
        files.copy_atomically(src_path, dst_path)
        return True


def fix_checkpoints() -> None:
    """Write checkpoints atomically with plain values, read them safely, and resume despite a damaged last one."""
    stock_save = checkpoint_utils.torch_persistent_save
    stock_load = checkpoint_utils.load_checkpoint

    def torch_persistent_save(obj, filename, async_write: bool = False):
        if async_write or not isinstance(filename, str):
            return stock_save(to_plain(obj), filename, async_write)
        return files.save_atomically(obj, filename)

    @functools.wraps(stock_load)
    def load_checkpoint(cfg, trainer, **kwargs):
        fallback = resuming.find_fallback(cfg, trainer)
        if fallback is None:
            return stock_load(cfg, trainer, **kwargs)
        newest, problem = fallback
        logger.warning(f"{problem}; resuming from {newest}")
        default, pretrained = cfg.restore_file, cfg.finetune_from_model
        # fairseq appends the suffix itself, and accepts only one of these options.
        cfg.restore_file = os.fspath(newest).removesuffix(f"{trainer.checkpoint_suffix}.pt") + ".pt"
        cfg.finetune_from_model = None
        try:
            return stock_load(cfg, trainer, **kwargs)
        finally:
            cfg.restore_file, cfg.finetune_from_model = default, pretrained

    stock_read = checkpoint_utils.load_checkpoint_to_cpu

    @functools.wraps(stock_read)
    def load_checkpoint_to_cpu(path, *args, **kwargs):
        if os.path.isfile(path):
            refuse_expanding(path)
            refuse_damaged(path)
        try:
            with torch.serialization.safe_globals(NUMPY_READERS):
                return stock_read(path, *args, **kwargs)
        except Exception:
            files.load_checkpoint(PathManager.get_local_path(path))  # raises a SharingError if the file is the cause
            raise

    checkpoint_utils.torch_persistent_save = torch_persistent_save
    checkpoint_utils.load_checkpoint = load_checkpoint
    checkpoint_utils.load_checkpoint_to_cpu = load_checkpoint_to_cpu
    checkpoint_utils.PathManager = _AtomicPathManager


def fix_meters() -> None:
    """Restore meters with numpy arrays, as used by --eval-bleu: checkpoints store arrays as lists."""
    stock = meters.MetersDict.load_state_dict

    @functools.wraps(stock)
    def load_state_dict(self, state_dict):
        return stock(self, [(*names, {k: _as_array(v) for k, v in meter.items()}) for *names, meter in state_dict])

    meters.MetersDict.load_state_dict = load_state_dict


def _as_array(value):
    return np.asarray(value) if isinstance(value, list) else value
