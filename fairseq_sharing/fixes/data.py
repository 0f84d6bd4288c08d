"""Fixes for fairseq's batches and for its use of numpy 2."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import numpy as np
from fairseq.data import bucket_pad_length_dataset as bucket_data
from fairseq.data import data_utils
from fairseq.tasks import FairseqTask

from fairseq_sharing.preparation.manifest import refuse_unfinished


def fix_numpy() -> None:
    """Replace what numpy 2 removed: a name in language-model blocks and bucketing, an argument in bucketing."""
    data_utils.get_buckets = bucket_data.get_buckets = get_buckets
    if not hasattr(np, "compat"):
        np.compat = argparse.Namespace(long=np.int64)


def get_buckets(sizes: np.ndarray, num_buckets: int) -> np.ndarray:
    """Return the lengths of --num-batch-buckets, as fairseq does with numpy 1.

    Args:
        sizes: length of each sentence.
        num_buckets: number of buckets; equal ones are merged.
    """
    return np.unique(np.percentile(sizes, np.linspace(0, 100, num_buckets + 1), method="lower")[1:])


def fix_batching() -> None:
    """Keep the last batch, which fairseq drops if its size is not a multiple of 8."""
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


def refuse_unfinished_data() -> None:
    """Refuse to read data while fairseq-sharing prepare is running, or before it has finished.

    After a preparation with other settings was killed, new dictionaries may lie beside old binary files.
    """
    stock = data_utils.load_indexed_dataset

    @functools.wraps(stock)
    def load_indexed_dataset(path, *args, **kwargs):
        folder = Path(path).absolute().parent
        if folder.name == "bin":  # as prepare names it
            refuse_unfinished(folder.parent)
        return stock(path, *args, **kwargs)

    data_utils.load_indexed_dataset = load_indexed_dataset


def fix_batches_of_later_epochs() -> None:
    """Group sentences into the same batches in whichever epoch a run resumes.

    fairseq groups them once. It draws the order of sentences of equal length with the number of the epoch in which the
    process started, so a run that resumes in a later epoch would get different batches.
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
