"""The criterion with ACT's ponder cost: sum, weight with --update-freq, and logs."""

from __future__ import annotations

import math

import pytest
import torch
from fairseq.logging import metrics
from sharing_cases import BY_NAME
from tiny_models import PAD, batch, build_case, make_trainer

from fairseq_sharing.errors import SharingError
from fairseq_sharing.universal.ponder import LabelSmoothedCrossEntropyWithPonder

WEIGHT, SMOOTHING = 0.3, 0.1


def sample(seed: int, keep: int = 3) -> dict:
    """Make a sample from some sentences of a batch."""
    inputs = {name: value[:keep] for name, value in batch(seed).items()}
    target = inputs["prev_output_tokens"].roll(-1, 1)
    return {
        "id": torch.arange(keep),
        "nsentences": keep,
        "ntokens": int((target != PAD).sum()),
        "target": target,
        "net_input": inputs,
    }


@pytest.fixture
def trainer(data_dir):
    """Make a trainer with this criterion for a model with ACT in both stacks."""
    trainer = make_trainer(data_dir, BY_NAME["cycle"], act="both", depth_signal="learned")
    trainer._criterion = LabelSmoothedCrossEntropyWithPonder(trainer.task, False, SMOOTHING, WEIGHT)
    return trainer


def by_hand(model, one):
    """Sum the smoothed cross-entropy and the ponder cost of a sample; count its target tokens."""
    output, extra = model(**one["net_input"])
    log_probs, target = output.log_softmax(-1), one["target"]
    nll = -log_probs.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    each = SMOOTHING / (log_probs.size(-1) - 1)
    smoothed = (1 - SMOOTHING - each) * nll - each * log_probs.sum(-1)
    cost = sum(spent.cost for spent in extra["ponder"].values())
    return smoothed[target != PAD].sum(), cost


def test_loss_is_the_sum_of_both_over_tokens(trainer):
    one = sample(3)
    loss, size, logged = trainer.criterion(trainer.model, one)
    cross_entropy, cost = by_hand(trainer.model, one)
    assert size == one["ntokens"]
    assert loss.item() == pytest.approx((cross_entropy + WEIGHT * cost).item(), rel=1e-5)
    assert logged["ponder_loss"].item() == pytest.approx(cost.item(), rel=1e-6)
    assert logged["encoder_positions"] == (one["net_input"]["src_tokens"] != PAD).sum()
    assert logged["decoder_positions"] == (one["net_input"]["prev_output_tokens"] != PAD).sum()


def test_an_update_of_two_unequal_steps_is_that_of_their_joint_batch(trainer):
    steps = [sample(3), sample(4, keep=1)]
    total, tokens = 0.0, 0
    for step in steps:
        cross_entropy, cost = by_hand(trainer.model, step)
        total, tokens = total + cross_entropy + WEIGHT * cost, tokens + step["ntokens"]
    parameters = list(trainer.model.parameters())
    expected = torch.autograd.grad(total / tokens, parameters)
    with metrics.aggregate() as logged:
        trainer.train_step(steps)
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
    smoothed = logged.get_smoothed_values()
    assert smoothed["loss"] == pytest.approx(total.item() / tokens / math.log(2), abs=2e-3)
    assert 1 < smoothed["encoder_steps"] < 6


def test_weight_of_zero_leaves_the_cross_entropy(trainer):
    criterion = LabelSmoothedCrossEntropyWithPonder(trainer.task, False, SMOOTHING, 0.0)
    loss, _, _ = criterion(trainer.model, sample(3))
    assert loss.item() == pytest.approx(by_hand(trainer.model, sample(3))[0].item(), rel=1e-5)


def test_a_model_without_act_and_a_negative_weight_are_refused(trainer):
    with pytest.raises(SharingError, match="requires a model with ACT; allowed: --act encoder, decoder, both"):
        trainer.criterion(build_case(BY_NAME["cycle"], "post"), sample(3))
    with pytest.raises(SharingError, match="--ponder-weight must be at least 0, got -1"):
        LabelSmoothedCrossEntropyWithPonder(trainer.task, False, SMOOTHING, -1)
