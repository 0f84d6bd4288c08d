"""MACs of a model at its depths as a function of the sentence length, for a depth per sentence."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from fairseq_sharing.checkpoints.arguments import model_arguments
from fairseq_sharing.depths.checkpoint import take_depth
from fairseq_sharing.depths.settings import DepthRequest, Setting
from fairseq_sharing.description.counts import build_without_storage, count_macs, encode_without_storage
from fairseq_sharing.sentence_depth.costs import Cost, Costs

# Two lengths determine the linear and the quadratic term.
_SHORT, _LONG = 8, 16


def measure_costs(checkpoint: Mapping[str, Any], settings: Sequence[Setting], vocabulary: int) -> Costs:
    """Count the MACs of a model at several depths.

    Args:
        checkpoint: the result of ``load_checkpoint``.
        settings: the depths.
        vocabulary: size of the target dictionary.

    Raises:
        SharingError: the checkpoint cannot be converted to the model of a depth.
    """
    taken = (take_depth(checkpoint, DepthRequest.of(setting))[0] for setting in settings)
    models = [build_without_storage(Namespace(**model_arguments(one)), vocabulary) for one in taken]
    shallowest = min(models, key=lambda model: len(model.encoder.layers))
    return Costs(_fit(shallowest, _count_encoder_macs), tuple(_fit(model, count_macs) for model in models))


def _count_encoder_macs(model: Any, length: int) -> int:
    if hasattr(model, "stack_macs"):  # as for ``count_macs``
        return model.stack_macs("encoder", length)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encode_without_storage(model, length)
    return counter.get_total_flops() // 2


def _fit(model: Any, count: Callable[[Any, int], int]) -> Cost:
    """Find the two terms of the MACs, which have no constant."""
    short, long = (count(model, length) / length for length in (_SHORT, _LONG))
    quadratic = (long - short) / (_LONG - _SHORT)
    return short - quadratic * _SHORT, quadratic
