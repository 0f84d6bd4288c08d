"""Fixes of training on several ranks: what they send each other, and torchrun without GPUs."""

from __future__ import annotations

import functools
import os

import torch
from fairseq.distributed import utils as distributed_utils


def mend_broadcast() -> None:
    """Let ranks send each other any object, above all the checkpoint to go on from.

    fairseq reads what a rank got with torch.load, which since torch 2.6 refuses most classes.
    """

    def broadcast(obj, src_rank: int, group, dist_device):
        box = [obj]
        torch.distributed.broadcast_object_list(box, src=src_rank, group=group, device=dist_device)
        return box[0]

    distributed_utils._broadcast_object_slow = broadcast


def mend_torchrun() -> None:
    """Let the processes that torchrun starts train together without a GPU too.

    fairseq takes the number of GPUs for the number of ranks: without any, each process would train a job of its own.
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
        cfg.distributed_backend, cfg.ddp_backend = "gloo", "legacy_ddp"  # the ones that work on a CPU
        return None

    distributed_utils.infer_init_method = infer_init_method
