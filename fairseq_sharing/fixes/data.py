"""Fixes of fairseq's batches and of numpy 2 beneath its data sets."""

from __future__ import annotations

import argparse
import functools

import numpy as np
from fairseq.data import data_utils
from fairseq.tasks import FairseqTask


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
