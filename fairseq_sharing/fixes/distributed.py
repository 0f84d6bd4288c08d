"""Fixes for distributed training: broadcasts of objects, and torchrun without GPUs."""

from __future__ import annotations

import functools
import os

import torch
from fairseq.distributed import utils as distributed_utils


def fix_broadcast() -> None:
    """Allow ranks to broadcast any object, in particular the checkpoint to resume from.

    fairseq reads a received object with torch.load, which rejects most classes since torch 2.6.
    """

    def broadcast(obj, src_rank: int, group, dist_device):
        box = [obj]
        torch.distributed.broadcast_object_list(box, src=src_rank, group=group, device=dist_device)
        return box[0]

    distributed_utils._broadcast_object_slow = broadcast


def fix_torchrun() -> None:
    """Support torchrun without GPUs.

    fairseq uses the number of GPUs as the number of ranks. Without GPUs, each process would train independently.
    """
    stock = distributed_utils.infer_init_method

    @functools.wraps(stock)
    def infer_init_method(cfg, force_distributed: bool = False):
        started = (
            int(os.environ.get("WORLD_SIZE", "1")) if {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= {*os.environ} else 1
        )
        if cfg.distributed_init_method is not None or started == 1 or torch.cuda.is_available():
            return stock(cfg, force_distributed)
        cfg.distributed_init_method = "env://"
        cfg.distributed_world_size, cfg.distributed_rank = started, int(os.environ["RANK"])
        cfg.device_id, cfg.distributed_no_spawn = int(os.environ.get("LOCAL_RANK", "0")), True
        cfg.distributed_backend, cfg.ddp_backend = "gloo", "legacy_ddp"  # the backends that work on CPU
        return None

    distributed_utils.infer_init_method = infer_init_method
