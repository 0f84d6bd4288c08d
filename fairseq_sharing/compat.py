"""What fairseq 0.12 gets wrong on current Python, torch and numpy, mended in one place.

Importing this room mends fairseq for the whole process; every model and task here imports it.
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import re
import sys
import time
from pathlib import Path

import fairseq
import numpy as np
import torch
from fairseq import checkpoint_utils, models, trainer
from fairseq.data import data_utils, iterators
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager
from fairseq.logging import meters, metrics
from fairseq.modules import checkpoint_activations
from fairseq.tasks import FairseqTask

from fairseq_sharing import checkpoint, resuming, tying
from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import format_map, num_unique
from fairseq_sharing.plain import NUMPY_READERS, to_plain

logger = logging.getLogger(__name__)

# The CPUID leaf that tells the sizes of AMX's tiles.
_AMX_TILE_LEAF = 0x1D


def avoid_half_hidden_amx(cpuinfo: str = "/proc/cpuinfo") -> None:
    """Keep oneDNN from AMX on a virtual machine that shows its flags but hides the sizes of its tiles.

    There oneDNN configures no tiles and the first bf16 product ends the process with an illegal instruction. Works
    until the process's first matrix product; a set ONEDNN_MAX_CPU_ISA is left alone.

    Args:
        cpuinfo: Linux's description of the processor; where there is none, nothing is done.
    """
    try:
        described = Path(cpuinfo).read_text()
    except OSError:
        return
    levels = re.findall(r"^cpuid level\s*: (\d+)$", described, flags=re.MULTILINE)
    if "amx_tile" in described.split() and levels and int(levels[0]) < _AMX_TILE_LEAF:
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16")


def mend_broadcast() -> None:
    """Let ranks send each other any object, above all the checkpoint to go on from.

    fairseq reads what a rank got with torch.load, which since torch 2.6 refuses most classes.
    """

    def broadcast(obj, src_rank: int, group, dist_device):
        box = [obj]
        torch.distributed.broadcast_object_list(box, src=src_rank, group=group, device=dist_device)
        return box[0]

    distributed_utils._broadcast_object_slow = broadcast


def avoid_cudnn_attention() -> None:
    """Keep torch from cuDNN's attention, which plans anew for each shape of a batch."""
    torch.backends.cuda.enable_cudnn_sdp(False)


def mend_numpy() -> None:
    """Give numpy 2 the name that fairseq's language-model blocks and bucketing still use."""
    if not hasattr(np, "compat"):
        np.compat = argparse.Namespace(long=np.int64)


def mend_batching() -> None:
    """Keep the last batch, which fairseq throws away when its size is no multiple of 8."""
    stock = data_utils.batch_by_size

    @functools.wraps(stock)
    def batch_by_size(indices, *args, fixed_shapes=None, **kwargs):
        if not isinstance(indices, np.ndarray):
            indices = np.fromiter(indices, dtype=np.int64)
        if not len(indices):
            return []
        batches = stock(indices, *args, fixed_shapes=fixed_shapes, **kwargs)
        if fixed_shapes is not None:
            return batches
        kept = sum(map(len, batches))
        return batches if kept == len(indices) else [*batches, indices[kept:]]

    data_utils.batch_by_size = batch_by_size


def mend_batches_of_later_epochs() -> None:
    """Group sentences into the same batches in whatever epoch a training goes on.

    fairseq groups them once, and draws the order of sentences of equal length with the number of the epoch in which
    the process began: a training that went on in another epoch than the first would have other batches.
    """
    stock = FairseqTask.get_batch_iterator

    @functools.wraps(stock)
    def get_batch_iterator(self, dataset, *args, **kwargs):
        epoch = kwargs.get("epoch", 1)
        fixed = not kwargs.get("disable_iterator_cache") and not kwargs.get("update_epoch_batch_itr")
        if epoch == 1 or dataset in self.dataset_to_epoch_iter or not (fixed and self.can_reuse_epoch_itr(dataset)):
            return stock(self, dataset, *args, **kwargs)
        iterator = stock(self, dataset, *args, **{**kwargs, "epoch": 1})
        dataset.set_epoch(epoch)
        iterator.epoch = epoch
        return iterator

    FairseqTask.get_batch_iterator = get_batch_iterator


class _AtomicPathManager(PathManager):
    """fairseq's file access; copies are never half a file."""

    @staticmethod
    def copy(src_path: str, dst_path: str, overwrite: bool = False) -> bool:
        if os.path.exists(dst_path) and not overwrite:
            return False
        checkpoint.copy_atomically(src_path, dst_path)
        return True


def mend_checkpoints() -> None:
    """Write every checkpoint atomically and plainly, read it safely, and resume past a damaged last one."""
    stock_save = checkpoint_utils.torch_persistent_save
    stock_load = checkpoint_utils.load_checkpoint

    def torch_persistent_save(obj, filename, async_write: bool = False):
        if async_write or not isinstance(filename, str):
            return stock_save(to_plain(obj), filename, async_write)
        return checkpoint.save_atomically(obj, filename)

    @functools.wraps(stock_load)
    def load_checkpoint(cfg, trainer, **kwargs):
        fallback = resuming.find_fallback(cfg, trainer)
        if fallback is None:
            return stock_load(cfg, trainer, **kwargs)
        newest, problem = fallback
        logger.warning(f"{problem}; resuming from {newest}")
        default = cfg.restore_file
        # fairseq adds the suffix itself.
        cfg.restore_file = os.fspath(newest).removesuffix(f"{trainer.checkpoint_suffix}.pt") + ".pt"
        try:
            return stock_load(cfg, trainer, **kwargs)
        finally:
            cfg.restore_file = default

    def reading(stock):
        @functools.wraps(stock)
        def read(path, *args, **kwargs):
            try:
                with torch.serialization.safe_globals(NUMPY_READERS):
                    return stock(path, *args, **kwargs)
            except Exception:
                checkpoint.load_checkpoint(PathManager.get_local_path(path))  # raises a SharingError if it is the file
                raise

        return read

    checkpoint_utils.torch_persistent_save = torch_persistent_save
    checkpoint_utils.load_checkpoint = load_checkpoint
    checkpoint_utils.load_checkpoint_to_cpu = reading(checkpoint_utils.load_checkpoint_to_cpu)
    checkpoint_utils.load_ema_from_checkpoint = reading(checkpoint_utils.load_ema_from_checkpoint)
    checkpoint_utils.PathManager = _AtomicPathManager


def mend_meters() -> None:
    """Resume with meters of numpy's arrays, as --eval-bleu has them: checkpoints hold arrays as lists."""
    stock = meters.MetersDict.load_state_dict

    @functools.wraps(stock)
    def load_state_dict(self, state_dict):
        return stock(self, [(*names, {k: _as_array(v) for k, v in meter.items()}) for *names, meter in state_dict])

    meters.MetersDict.load_state_dict = load_state_dict


def _as_array(value):
    return np.asarray(value) if isinstance(value, list) else value


def show_data_wait() -> None:
    """Log the seconds of an epoch in which training waited for its next batches, as ``data_wait``."""
    stock = iterators.GroupedIterator.__next__

    def __next__(self):
        began = time.perf_counter()
        batches = stock(self)
        metrics.log_scalar_sum("data_wait", time.perf_counter() - began, priority=950, round=2)
        return batches

    iterators.GroupedIterator.__next__ = __next__


def mend_recomputation() -> None:
    """Recompute activations in the precision of the forward pass: fairseq forgets autocast, and does it in fp32."""
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


def mend_trainer() -> None:
    """Say in one line which checkpoint does not fit, and let a fine-tuning start from a model of M layers.

    Also: list the parameters anew after a checkpoint has changed the layer map, and let a task look at the run after
    each update that was made (fairseq's own hook comes before it is known whether the update counts).
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
        token = checkpoint.initialising.set(bool(reset_optimizer))
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
            checkpoint.initialising.reset(token)

    trainer.Trainer.load_checkpoint = load_checkpoint
    trainer.Trainer.train_step = train_step


def log_maps_for_ties() -> None:
    """Log a line of each stack in the place of one for each tied parameter: of 1,764 with 6 sets in 48 layers."""
    stock = trainer._catalog_shared_params

    @functools.wraps(stock)
    def catalog(module, memo=None, prefix=""):
        for stack, sharing in getattr(module, "sharing", {}).items() if memo is None else ():
            drawn, sets = format_map(sharing.layer_map), num_unique(sharing.layer_map)
            scope = "" if sharing.scope == ("layer",) else f" ({','.join(sharing.scope)})"
            trainer.logger.info("%s: %d layers of %d sets%s: %s", stack, len(sharing.layer_map), sets, scope, drawn)
        return stock(module, memo, prefix)

    trainer._catalog_shared_params = catalog
    tied = re.compile(r"detected shared parameter: \S*\blayers\.\d")
    trainer.logger.addFilter(lambda record: not tied.match(str(record.msg)))


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


def find_sharing_error(error: BaseException | None) -> SharingError | None:
    """Find a SharingError in an exception or in what it was raised from.

    An error of a spawned process comes as text; its line is found there.
    """
    while error is not None:
        if isinstance(error, SharingError):
            return error
        told = re.findall(rf"{SharingError.__module__}\.{SharingError.__name__}: (.*)", str(error))
        if told:
            return SharingError(told[-1])
        error = error.__cause__ or error.__context__
    return None


def tell_errors_in_one_line() -> None:
    """Make fairseq's commands end with one line instead of a traceback when a SharingError stops them.

    Only in a process that runs one of fairseq's commands: elsewhere a Python caller gets the exception itself.
    """
    program = Path(sys.argv[0] or "").stem
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    module = main.name if main else ""
    if not (program.startswith("fairseq-") or module.startswith("fairseq_cli")):
        return
    stock_hook = sys.excepthook
    name = program if program.startswith("fairseq-") else "fairseq-" + module.rpartition(".")[2].replace("_", "-")

    def hook(kind, error, traceback):
        told = find_sharing_error(error)
        if told is None:
            stock_hook(kind, error, traceback)
        else:
            print(f"{name}: error: {told}", file=sys.stderr)

    sys.excepthook = hook
    if name == "fairseq-hydra-train":
        models.build_model = _exit_on_sharing_error(models.build_model, name)


def _exit_on_sharing_error(stock, name: str):
    """Hydra, which never lets an exception reach the hook, lets SystemExit pass."""

    @functools.wraps(stock)
    def function(*args, **kwargs):
        try:
            return stock(*args, **kwargs)
        except SharingError as error:
            sys.exit(f"{name}: error: {error}")

    return function


def mend() -> None:
    """Mend fairseq, once a process."""
    if getattr(fairseq, "_mended_by_fairseq_sharing", False):
        return
    fairseq._mended_by_fairseq_sharing = True
    avoid_half_hidden_amx()
    mend_broadcast()
    avoid_cudnn_attention()
    mend_numpy()
    mend_batching()
    mend_batches_of_later_epochs()
    mend_checkpoints()
    mend_meters()
    show_data_wait()
    mend_recomputation()
    mend_trainer()
    log_maps_for_ties()
    mend_torchrun()
    tell_errors_in_one_line()


mend()
