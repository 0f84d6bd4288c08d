"""Label-smoothed cross-entropy plus ACT's ponder cost: ``--criterion label_smoothed_cross_entropy_with_ponder``."""

import math
from dataclasses import dataclass

import torch
from fairseq.criterions import register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyCriterionConfig,
)
from fairseq.logging import metrics

from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import STACKS
from fairseq_sharing.options import option_field


@dataclass
class PonderCriterionConfig(LabelSmoothedCrossEntropyCriterionConfig):
    """Options that ``label_smoothed_cross_entropy_with_ponder`` adds to fairseq's label-smoothed cross-entropy."""

    # fairseq derives the flags from these annotations at run time: use no postponed annotations.

    ponder_weight: float = option_field(
        "weight of ACT's ponder cost, summed over the tokens of the stacks with ACT", 0.01
    )


NAME = "label_smoothed_cross_entropy_with_ponder"
_NEEDS_ACT = f"--criterion {NAME} requires a model with ACT; allowed: --act encoder, decoder, both"


@register_criterion(NAME, dataclass=PonderCriterionConfig)
class LabelSmoothedCrossEntropyWithPonder(LabelSmoothedCrossEntropyCriterion):
    """Cross-entropy + weight x ponder cost, both summed over tokens and divided by the size of the whole batch.

    An update therefore does not depend on how its batch is split over steps (``--update-freq``) and ranks.

    Source: Graves 2016, Section 2.1, equation 11; the weight is the paper's time penalty.
    """

    def __init__(self, task, sentence_avg, label_smoothing, ponder_weight, ignore_prefix_size=0, report_accuracy=False):
        super().__init__(task, sentence_avg, label_smoothing, ignore_prefix_size, report_accuracy)
        _check_weight(ponder_weight)
        self.ponder_weight = ponder_weight
        self._logged: dict[str, torch.Tensor] = {}

    @staticmethod
    def check_options(args):
        """Check the options before a training starts.

        Raises:
            SharingError: the model has no ACT, or the weight is negative.
        """
        if getattr(args, "act", "off") == "off":
            raise SharingError(_NEEDS_ACT)
        _check_weight(args.ponder_weight)

    def forward(self, model, sample, reduce=True):
        """Compute the loss, the sample size and the logging output of a batch, as fairseq's criterions do."""
        loss, sample_size, logged = super().forward(model, sample, reduce=reduce)
        return loss, sample_size, {**logged, **self._logged}

    def compute_loss(self, model, net_output, sample, reduce=True):
        """Add the ponder cost to fairseq's loss.

        Raises:
            SharingError: if the model has no ACT.
        """
        loss, nll_loss = super().compute_loss(model, net_output, sample, reduce=reduce)
        ponder = net_output[1].get("ponder")
        if not ponder:
            raise SharingError(_NEEDS_ACT)
        cost = torch.stack([stack.cost for stack in ponder.values()]).sum()
        self._logged = {"ponder_loss": cost.detach()}
        for stack, spent in ponder.items():
            self._logged[f"{stack}_steps"] = spent.steps.sum()
            self._logged[f"{stack}_positions"] = spent.positions
        return loss + self.ponder_weight * cost, nll_loss

    @classmethod
    def reduce_metrics(cls, logging_outputs) -> None:
        """Aggregate the logging outputs of steps and ranks: fairseq's values, the ponder cost and steps per token."""
        super().reduce_metrics(logging_outputs)
        sample_size = sum(log.get("sample_size", 0) for log in logging_outputs)
        cost = sum(log.get("ponder_loss", 0) for log in logging_outputs)
        metrics.log_scalar("ponder_loss", cost / sample_size / math.log(2), sample_size, round=3)
        for stack in STACKS:
            positions = sum(log.get(f"{stack}_positions", 0) for log in logging_outputs)
            if positions:
                steps = sum(log.get(f"{stack}_steps", 0) for log in logging_outputs)
                metrics.log_scalar(f"{stack}_steps", steps / positions, positions, round=3)


def _check_weight(weight):
    if weight < 0:
        raise SharingError(f"--ponder-weight must be at least 0, got {weight}")
