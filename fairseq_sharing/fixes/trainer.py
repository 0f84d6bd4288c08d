"""Fixes for fairseq's trainer, and a hook for tasks after each update."""

from __future__ import annotations

import functools

import torch
from fairseq import trainer
from fairseq.modules import checkpoint_activations

from fairseq_sharing import tying
from fairseq_sharing.checkpoints.sharing_state import initializing
from fairseq_sharing.errors import SharingError
from fairseq_sharing.fixes.error_messages import find_sharing_error


def fix_recomputation() -> None:
    """Recompute activations in the precision of the forward pass: fairseq ignores autocast and recomputes in fp32."""
    stock = checkpoint_activations._checkpointed_forward

    def checkpointed_forward(original_forward, offload_to_cpu, *args, **kwargs):
        device = next((x.device.type for x in (*args, *kwargs.values()) if torch.is_tensor(x)), "cpu")
        autocast = functools.partial(
            torch.autocast,
            device,
            dtype=torch.get_autocast_dtype(device),
            enabled=torch.is_autocast_enabled(device),
            cache_enabled=torch.is_autocast_cache_enabled(),
        )

        def forward(*given, **named):
            with autocast():
                return original_forward(*given, **named)

        return stock(forward, offload_to_cpu, *args, **kwargs)

    checkpoint_activations._checkpointed_forward = checkpointed_forward


def fix_trainer() -> None:
    """Name the checkpoint in errors, and allow fine-tuning to start from a model with M layers.

    Also refresh the parameter lists after a checkpoint has changed the layer map, and call a task's ``after_update``
    after each update that was applied. (fairseq's own hook runs before it is known whether the update counts.)
    """
    stock_load = trainer.Trainer.load_checkpoint
    stock_step = trainer.Trainer.train_step

    @functools.wraps(stock_step)
    def train_step(self, samples, raise_oom=False):
        before = self.get_num_updates()
        output = stock_step(self, samples, raise_oom)
        if self.get_num_updates() > before and hasattr(self.task, "after_update"):
            self.task.after_update(self)
        return output

    @functools.wraps(stock_load)
    def load_checkpoint(self, filename, reset_optimizer=False, *args, **kwargs):
        token = initializing.set(bool(reset_optimizer))
        try:
            extra_state = stock_load(self, filename, reset_optimizer, *args, **kwargs)
            if extra_state is not None:
                tying.refresh_data_parallel(self.model)
            return extra_state
        except Exception as error:
            cause = find_sharing_error(error)
            if cause is None:
                raise
            named = str(cause).startswith(f"{filename}:")
            raise SharingError(str(cause) if named else f"{filename}: {cause}") from error
        finally:
            initializing.reset(token)

    trainer.Trainer.load_checkpoint = load_checkpoint
    trainer.Trainer.train_step = train_step
