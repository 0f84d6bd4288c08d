"""The losses of several depths in training and validation, for any criterion."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from fairseq.logging import metrics
from fairseq.tasks import FairseqTask

from fairseq_sharing.depths.sampling import Depths
from fairseq_sharing.depths.settings import setting_name

_PREFIX = "nll_loss_"  # of the loss of a setting in logs: nll_loss_d4


def add_losses_of_depths() -> None:
    """Train at the drawn depths or with the aligned loss, and validate at every depth, in all of fairseq's tasks."""
    stock_train, stock_valid, stock_reduce = FairseqTask.train_step, FairseqTask.valid_step, FairseqTask.reduce_metrics

    @functools.wraps(stock_train)
    def train_step(self, sample, model, criterion, optimizer, update_num, *args, **kwargs):  # type: ignore[no-untyped-def]
        depths = getattr(model, "depths", None)
        if depths is not None:
            model.draw_depth(update_num)
            if depths.aligned:
                criterion = functools.partial(aligned_loss, criterion, depths)
        return stock_train(self, sample, model, criterion, optimizer, update_num, *args, **kwargs)

    @functools.wraps(stock_valid)
    def valid_step(self, sample, model, criterion, *args, **kwargs):  # type: ignore[no-untyped-def]
        loss, sample_size, logged = stock_valid(self, sample, model, criterion, *args, **kwargs)
        depths = getattr(model, "depths", None)
        if depths is not None:
            logged = {**logged, **losses_of_depths(criterion, depths, model, sample, logged)}
        return loss, sample_size, logged

    @functools.wraps(stock_reduce)
    def reduce_metrics(self, logging_outputs, criterion):  # type: ignore[no-untyped-def]
        stock_reduce(self, logging_outputs, criterion)
        log_losses(logging_outputs)

    FairseqTask.train_step, FairseqTask.valid_step = train_step, valid_step
    FairseqTask.reduce_metrics = reduce_metrics


def aligned_loss(
    criterion: Callable[..., Any], depths: Depths, model: Any, sample: dict[str, Any]
) -> tuple[torch.Tensor, Any, dict[str, Any]]:
    """Sum the losses of all depths of the decoder, weighted, from one pass through the layers.

    Args:
        criterion: fairseq's criterion.
        depths: the depths and their weights, which sum to 1.
        model: the model, possibly in a data-parallel wrapper.
        sample: a batch.

    Returns:
        The results of the criterion. Its log is that of the largest depth with a weight, except for the loss.

    Source: Elbayad et al. 2020, "Depth-Adaptive Transformer", aligned training. Here, the weights of the exits are the
    shares of the depths in sampled training.
    """
    weighted = [(s, p) for s, p in zip(depths.settings, depths.probabilities, strict=True) if p > 0]
    total, size, logged, losses = None, None, {}, {}
    with model.keeping_pass(weighted[0][0]["decoder"]) as kept:
        for setting, weight in weighted:
            kept.depth = setting["decoder"]
            loss, size, logged = criterion(model, sample)
            total = weight * loss if total is None else total + weight * loss
            losses[_PREFIX + setting_name(setting)] = _nll(logged)
    assert total is not None
    return total, size, {**logged, "loss": total.data, **losses}


@torch.no_grad()
def losses_of_depths(
    criterion: Callable[..., Any], depths: Depths, model: Any, sample: dict[str, Any], full: dict[str, Any]
) -> dict[str, Any]:
    """Return the loss of a validation batch at every trained depth, summed over its tokens.

    Args:
        criterion: fairseq's criterion.
        depths: the trained depths.
        model: the model, possibly in a data-parallel wrapper, in evaluation mode.
        sample: the batch.
        full: the log of the batch with all layers.
    """
    *smaller, last = depths.settings
    losses = {}
    try:
        for setting in smaller:
            model.use_depth(setting)
            losses[_PREFIX + setting_name(setting)] = _nll(criterion(model, sample)[2])
    finally:
        model.use_depth(None)
    return {**losses, _PREFIX + setting_name(last): _nll(full)}


def log_losses(logging_outputs: list[dict[str, Any]]) -> None:
    """Log the loss of each depth in bits, per token if the criterion logs a likelihood, else per its sample size."""
    if not logging_outputs:
        return
    divisor = "ntokens" if "nll_loss" in logging_outputs[0] else "sample_size"
    count = sum(log.get(divisor, 0) for log in logging_outputs)
    for name in logging_outputs[0]:
        if name.startswith(_PREFIX):
            total = sum(log[name] for log in logging_outputs)
            metrics.log_scalar(name, total / count / math.log(2), count, round=3)


def _nll(logged: dict[str, Any]) -> Any:
    return logged["nll_loss"] if "nll_loss" in logged else logged["loss"]
