"""Cross-entropy for models with expert banks: adds a load-balancing term and logs the usage of experts."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.criterions import register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterionConfig
from fairseq.dataclass import ChoiceEnum
from fairseq.logging import metrics

from fairseq_sharing.errors import SharingError
from fairseq_sharing.fast.fused_label_smoothed_cross_entropy import FusedLabelSmoothedCrossEntropyCriterion
from fairseq_sharing.moeut.routing import RouterUsage, negative_entropy

_COUNTS = "experts/"


@dataclass
class MoECrossEntropyConfig(LabelSmoothedCrossEntropyCriterionConfig):
    """Options that ``--criterion moe_cross_entropy`` adds to fairseq's label-smoothed cross-entropy."""

    # fairseq derives the flags from these annotations at run time: use no postponed annotations.

    ffn_entropy: float = field(
        default=0.01,
        metadata={"help": "weight of the entropy reward of feed-forward experts, in nats per target token"},
    )
    attention_entropy: float = field(
        default=0.001,
        metadata={"help": "weight of the entropy reward of each attention router"},
    )
    entropy_scope: ChoiceEnum(["auto", "sequence", "batch"]) = field(
        default="auto",
        metadata={
            "help": "tokens over which choices are averaged: sequence, as in the paper, or batch (a micro-batch of one "
            "device); auto: sequence for language models, batch for translation, whose sentences are too short"
        },
    )
    log_expert_usage: bool = field(
        default=False,
        metadata={"help": "log how often each expert is chosen in validation, for the figures of report"},
    )


@register_criterion("moe_cross_entropy", dataclass=MoECrossEntropyConfig)
class MoECrossEntropyCriterion(FusedLabelSmoothedCrossEntropyCriterion):
    """Label-smoothed cross-entropy minus the weighted entropies of the routers' mean distributions, in training only.

    As in the cross-entropy, a sequence is weighted by its number of target tokens (by 1 with --sentence-avg). The loss
    therefore does not depend on how an update is split over ranks and --update-freq, unless distributions are averaged
    over a batch. For sequences of equal length this is the paper's mean over sequences.

    Source: Csordas et al. 2024, MoEUT, section 2.1.
    """

    flag = "moe_cross_entropy"

    def __init__(
        self,
        task,
        sentence_avg,
        label_smoothing,
        ignore_prefix_size=0,
        report_accuracy=False,
        ffn_entropy=0.01,
        attention_entropy=0.001,
        entropy_scope="auto",
        log_expert_usage=False,
    ):
        super().__init__(task, sentence_avg, label_smoothing, ignore_prefix_size, report_accuracy)
        for flag, weight in (("--ffn-entropy", ffn_entropy), ("--attention-entropy", attention_entropy)):
            if weight < 0:
                raise SharingError(f"{flag} must be at least 0, got {weight}; nearest: 0")
        self.ffn_entropy, self.attention_entropy = ffn_entropy, attention_entropy
        self.entropy_scope, self.log_expert_usage = str(entropy_scope), log_expert_usage

    def forward(self, model, sample, reduce=True):
        """Compute the loss.

        Args:
            model: a model with expert banks.
            sample: a batch.
            reduce: sum over tokens; otherwise the loss is that of ``label_smoothed_cross_entropy``.

        Returns:
            The loss, its denominator and the logging output.
        """
        if not hasattr(model, "expert_banks"):
            raise SharingError(
                "--criterion moe_cross_entropy requires a model with expert banks; "
                "allowed: --arch transformer_moeut, transformer_lm_moeut or one of their sizes"
            )
        if not reduce:
            return super().forward(model, sample, reduce=False)
        loss, size, logged, extra = self.score(model, sample, return_usage=True)
        usage = extra["usage"]
        if model.training:
            lengths = sample["target"].ne(self.padding_idx).sum(1)
            weights = torch.ones_like(lengths) if self.sentence_avg else lengths
            weights = weights * (size / weights.sum())
            balance = loss.new_zeros(()) - sum(
                weight * (entropy * weights).sum() for weight, entropy in self.entropies(usage)
            )
            loss = loss + balance
            logged["balance"] = balance.detach()
            logged.update(_mean_evenness(usage))
        else:
            logged.update(_choices(usage), list_experts=int(self.log_expert_usage))
        return loss, size, logged

    def entropies(self, usage: dict[str, list[list[RouterUsage]]]) -> list[tuple[float, torch.Tensor]]:
        """Return each router's loss weight and the entropy of its mean distribution per sequence, (B,), in nats."""
        routers: dict[torch.nn.Parameter, list[RouterUsage]] = {}
        for layers in usage.values():
            for used in layers:
                for one in used:
                    routers.setdefault(one.router, []).append(one)
        pool_batch = "encoder" in usage if self.entropy_scope == "auto" else self.entropy_scope == "batch"
        return [
            (self.ffn_entropy if used[0].kind == "ffn" else self.attention_entropy, -negative_entropy(used, pool_batch))
            for used in routers.values()
        ]

    @classmethod
    def reduce_metrics(cls, logging_outputs) -> None:
        """Aggregate the logging outputs of all ranks."""
        super().reduce_metrics(logging_outputs)
        if not logging_outputs:
            return

        def total(name):
            return sum(log[name] for log in logging_outputs)

        for name in logging_outputs[0]:
            if name == "balance":
                size = total("sample_size")
                metrics.log_scalar(name, total(name) / size / math.log(2), size, round=4)
            elif name.endswith("evenness"):
                metrics.log_scalar(name, total(name) / total("nsentences"), total("nsentences"), round=3)
            elif name.startswith(_COUNTS):
                _log_choices(name.removeprefix(_COUNTS), total(name), listed=total("list_experts") > 0)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Return True: all logging outputs are sums."""
        return True


def evenness(counts: torch.Tensor) -> torch.Tensor:
    """Divide the entropy of expert counts by its maximum: (..., experts) -> (...), from 0 to 1."""
    p = counts / counts.sum(-1, keepdim=True).clamp(min=1)
    entropy = torch.special.entr(p).sum(-1)
    return entropy / math.log(p.size(-1)) if p.size(-1) > 1 else torch.ones_like(entropy)


def _by_layer(usage: dict[str, list[list[RouterUsage]]]) -> Iterator[tuple[str, int, RouterUsage]]:
    """Iterate over all usages: stack and kind, layer number from 1, usage."""
    for stack, layers in usage.items():
        for number, used in enumerate(layers, 1):
            for one in used:
                yield f"{stack}_{one.kind.replace('.', '_')}", number, one


@torch.no_grad()
def _mean_evenness(usage) -> dict[str, torch.Tensor]:
    """Compute the evenness of a batch by stack and kind: mean over layers, times the number of sentences."""
    found: dict[str, list[torch.Tensor]] = {}
    for name, _, one in _by_layer(usage):
        found.setdefault(f"{name}_evenness", []).append(one.counts)
        sentences = len(one.tokens)
    return {name: evenness(torch.stack(counts).double()).mean() * sentences for name, counts in found.items()}


def _choices(usage) -> dict[str, torch.Tensor]:
    """Count how often each expert was selected, by stack, kind and layer."""
    return {f"{_COUNTS}{name}_{number}": one.counts.double() for name, number, one in _by_layer(usage)}


def _log_choices(name: str, counts: torch.Tensor, listed: bool) -> None:
    """Log the evenness and the share of dead experts in a validation, and optionally all counts."""

    def log(what: str, measure: Callable[[torch.Tensor], Any]) -> None:
        metrics.log_derived(f"{name}_{what}", lambda meters: measure(meters[f"_{name}"].sum), priority=900)

    # fairseq does not print meters whose name starts with an underscore.
    metrics.log_scalar_sum(f"_{name}", counts.cpu())
    log("evenness", lambda counts: round(evenness(counts).mean().item(), 4))
    log("dead", lambda counts: round((counts == 0).double().mean().item(), 4))
    if listed:
        log("choices", lambda counts: counts.flatten().long().tolist())
