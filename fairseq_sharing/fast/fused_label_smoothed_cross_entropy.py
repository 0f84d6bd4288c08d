"""fairseq's label-smoothed cross-entropy, fused with the output projection."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from fairseq.criterions import register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyCriterionConfig,
)
from torch import Tensor, nn

from fairseq_sharing.errors import SharingError
from fairseq_sharing.fast.label_smoothed_projection import label_smoothed_loss

NAME = "fused_label_smoothed_cross_entropy"


@register_criterion(NAME, dataclass=LabelSmoothedCrossEntropyCriterionConfig)
class FusedLabelSmoothedCrossEntropyCriterion(LabelSmoothedCrossEntropyCriterion):
    """``label_smoothed_cross_entropy`` with the same loss, log and options, but faster and with less memory."""

    flag = NAME

    def forward(
        self, model: nn.Module, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Compute the loss of a batch.

        Args:
            model: an encoder-decoder or language model with a plain output projection.
            sample: a fairseq batch.
            reduce: whether to sum over the tokens; if not, fairseq's own loss is used.

        Returns:
            The loss in nats, the sample size that divides its gradient, and the logging output.

        Raises:
            SharingError: if the model has an adaptive softmax.
        """
        if not reduce:
            return super().forward(model, sample, reduce=False)
        return self.score(model, sample)[:3]

    def score(
        self, model: Any, sample: dict[str, Any], **asked: Any
    ) -> tuple[Tensor, int, dict[str, Any], dict[str, Any]]:
        """Run a model on a batch and sum its losses.

        Args:
            model: see ``forward``.
            sample: a batch.
            asked: additional arguments of the model.

        Returns:
            The results of ``forward``, and the model's extra outputs.

        Raises:
            SharingError: if the model has an adaptive softmax.
        """
        if getattr(model.decoder, "adaptive_softmax", None) is not None:
            raise SharingError(
                f"--criterion {self.flag} cannot be combined with --adaptive-softmax-cutoff; allowed: adaptive_loss"
            )
        features, extra = model(**sample["net_input"], features_only=True, **asked)
        projection = model.decoder.output_projection
        with getattr(model, "training_autocast", nullcontext)():
            losses = label_smoothed_loss(
                features[:, self.ignore_prefix_size :],
                projection.weight,
                sample["target"][:, self.ignore_prefix_size :],
                self.eps,
                self.padding_idx,
                projection.bias,
                count_correct=self.report_accuracy,
            )
        sample_size = sample["target"].size(0) if self.sentence_avg else sample["ntokens"]
        logged = {
            "loss": losses.loss.data,
            "nll_loss": losses.nll_loss.data,
            "ntokens": sample["ntokens"],
            "nsentences": sample["target"].size(0),
            "sample_size": sample_size,
        }
        if self.report_accuracy:
            logged["n_correct"] = losses.correct.item()
            logged["total"] = sample["target"][:, self.ignore_prefix_size :].ne(self.padding_idx).sum().item()
        return losses.loss, sample_size, logged, extra


# fairseq compares class names on resume. An equal name lets plain and fused runs resume from each other's checkpoints.
FusedLabelSmoothedCrossEntropyCriterion.__name__ = LabelSmoothedCrossEntropyCriterion.__name__
