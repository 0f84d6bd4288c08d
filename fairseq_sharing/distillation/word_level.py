"""Word-level distillation: ``--criterion label_smoothed_cross_entropy_with_teacher``."""

import math
from argparse import Namespace
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.criterions import register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyCriterionConfig,
)
from fairseq.logging import metrics
from torch import Tensor

from fairseq_sharing.distillation.frozen_teacher import FrozenTeacher
from fairseq_sharing.errors import SharingError
from fairseq_sharing.finite import is_number
from fairseq_sharing.options import option_field

NAME = "label_smoothed_cross_entropy_with_teacher"


@dataclass
class TeacherCriterionConfig(LabelSmoothedCrossEntropyCriterionConfig):
    """Options that ``label_smoothed_cross_entropy_with_teacher`` adds to fairseq's label-smoothed cross-entropy."""

    # fairseq derives the flags from these annotations at run time: use no postponed annotations.

    teacher: str = option_field(
        "checkpoint of the teacher, a translation model with the same languages and dictionaries", ""
    )
    teacher_data: str = option_field(
        "prepared data of the teacher, if it moved since its training; only the dictionaries are read", ""
    )
    kd_alpha: float = option_field(
        "weight of the divergence from the teacher, 0 to 1; the weight of the cross-entropy is 1 minus this", 0.5
    )
    kd_temperature: float = option_field(
        "temperature that divides the scores of teacher and student; above 1, unlikely words count more", 1.0
    )


@register_criterion(NAME, dataclass=TeacherCriterionConfig)
class LabelSmoothedCrossEntropyWithTeacher(LabelSmoothedCrossEntropyCriterion):
    """(1 - alpha) x cross-entropy + alpha x T^2 x KL(teacher || student), both summed over the target tokens.

    The divergence is that of the distributions at temperature T, in fp32. Label smoothing applies to the cross-entropy
    only. Both sums are divided by the size of the whole batch, so an update does not depend on how its batch is split
    over steps (``--update-freq``) and ranks. In validation the loss is the cross-entropy alone, so that the choice of
    the best checkpoint does not depend on the teacher; the divergence is logged as ``teacher_kl``.

    Source: Kim and Rush 2016, word-level knowledge distillation, with the KL divergence instead of the cross-entropy,
    which has the same gradient.
    """

    def __init__(
        self,
        task: Any,
        sentence_avg: bool,
        label_smoothing: float,
        teacher: str = "",
        teacher_data: str = "",
        kd_alpha: float = 0.5,
        kd_temperature: float = 1.0,
        ignore_prefix_size: int = 0,
        report_accuracy: bool = False,
    ):
        super().__init__(task, sentence_avg, label_smoothing, ignore_prefix_size, report_accuracy)
        self.check_options(Namespace(teacher=teacher, kd_alpha=kd_alpha, kd_temperature=kd_temperature))
        self.alpha, self.temperature = kd_alpha, kd_temperature
        self.teacher = FrozenTeacher(teacher, teacher_data, task)
        self._divergence = torch.zeros(())

    @staticmethod
    def check_options(args: Namespace) -> None:
        """Check the options before a training starts.

        Raises:
            SharingError: there is no teacher, or a number is out of its range.
        """
        if not is_number(args.kd_alpha) or not 0 <= args.kd_alpha <= 1:
            raise SharingError(f"--kd-alpha must be between 0 and 1, got {args.kd_alpha}")
        if not is_number(args.kd_temperature) or args.kd_temperature <= 0:
            raise SharingError(f"--kd-temperature must be a finite number above 0, got {args.kd_temperature}")
        if not args.teacher:
            raise SharingError(f"--criterion {NAME} requires --teacher CHECKPOINT")

    def forward(self, model: Any, sample: dict[str, Any], reduce: bool = True) -> tuple[Tensor, int, dict[str, Any]]:
        """Compute the loss, the sample size and the logging output of a batch, as fairseq's criterions do.

        Raises:
            SharingError: the model has expert banks, whose usage this criterion does not balance, or an adaptive
                softmax.
        """
        _refuse_model(model)
        loss, sample_size, logged = super().forward(model, sample, reduce=reduce)
        return loss, sample_size, {**logged, "teacher_kl": self._divergence}

    def compute_loss(
        self, model: Any, net_output: Any, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Add the divergence to fairseq's loss in training, and keep it for the log."""
        loss, nll_loss = super().compute_loss(model, net_output, sample, reduce=reduce)
        divergence = self.divergence(model, net_output, sample)
        self._divergence = divergence.detach().sum()
        if model.training:
            added = divergence.sum() if reduce else divergence.view_as(loss)
            loss = (1 - self.alpha) * loss + self.alpha * self.temperature**2 * added
        return loss, nll_loss

    def divergence(self, model: Any, net_output: Any, sample: dict[str, Any]) -> Tensor:
        """Return KL(teacher || student) per target position, in nats; 0 for padding."""
        student, teacher = (
            F.log_softmax(scores[:, self.ignore_prefix_size :] / self.temperature, -1, dtype=torch.float32)
            for scores in (net_output[0].float(), self.teacher.scores(sample))
        )
        padding = model.get_targets(sample, net_output)[:, self.ignore_prefix_size :].eq(self.padding_idx)
        return F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1).masked_fill(padding, 0.0)

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Aggregate the logging outputs of steps and ranks: fairseq's values, and the divergence per token in bits."""
        super().reduce_metrics(logging_outputs)
        tokens = sum(log.get("ntokens", 0) for log in logging_outputs)
        total = sum(log.get("teacher_kl", 0) for log in logging_outputs)
        metrics.log_scalar("teacher_kl", total / tokens / math.log(2), tokens, round=3)


def _refuse_model(model: Any) -> None:
    """Refuse students whose loss has other parts or whose scores of the vocabulary are not available."""
    if hasattr(model, "expert_banks"):
        raise SharingError(
            f"--criterion {NAME} does not balance the usage of experts; allowed: models without expert banks as "
            "students, or moe_cross_entropy on the data that fairseq-sharing distill writes"
        )
    if getattr(model.decoder, "adaptive_softmax", None) is not None:
        raise SharingError(f"--criterion {NAME} cannot be combined with --adaptive-softmax-cutoff")
