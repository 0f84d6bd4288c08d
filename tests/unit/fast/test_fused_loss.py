"""The fused loss compared with fairseq's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    label_smoothed_nll_loss,
)
from tiny_models import PAD, batch, build, dictionary

from fairseq_sharing.errors import SharingError
from fairseq_sharing.fast import label_smoothed_projection
from fairseq_sharing.fast.fused_label_smoothed_cross_entropy import FusedLabelSmoothedCrossEntropyCriterion
from fairseq_sharing.fast.label_smoothed_projection import label_smoothed_loss

ROWS, WIDTH, WORDS = 23, 8, 31


def inputs(scale=1.0):
    generator = torch.Generator().manual_seed(4)
    features = (scale * torch.randn(ROWS, WIDTH, generator=generator)).requires_grad_()
    weight = torch.randn(WORDS, WIDTH, generator=generator).requires_grad_()
    target = torch.randint(2, WORDS, (ROWS,), generator=generator)
    target[::5] = PAD
    return features, weight, target


@pytest.mark.parametrize("chunk", [1, 28 * WORDS, 1 << 28])
@pytest.mark.parametrize("epsilon", [0.0, 0.1])
@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("biased", [False, True])
def test_values_and_gradients_equal_fairseq_s(monkeypatch, epsilon, chunk, scale, biased):
    monkeypatch.setattr(label_smoothed_projection, "_CHUNK_BYTES", chunk)
    features, weight, target = inputs(scale)
    bias = torch.linspace(-2, 2, WORDS).requires_grad_() if biased else None
    given = [features, weight, *([bias] if biased else [])]
    log_probs = torch.log_softmax(torch.nn.functional.linear(features, weight, bias), -1)
    loss, nll_loss = label_smoothed_nll_loss(log_probs, target, epsilon, ignore_index=PAD)
    expected = torch.autograd.grad(3 * loss, given)
    ours = label_smoothed_loss(features.view(1, ROWS, WIDTH), weight, target.view(1, ROWS), epsilon, PAD, bias)
    torch.testing.assert_close(ours.loss, loss)
    torch.testing.assert_close(ours.nll_loss, nll_loss)
    assert ours.correct == (log_probs.argmax(-1) == target)[target != PAD].sum()
    torch.testing.assert_close(torch.autograd.grad(3 * ours.loss, given), expected, rtol=1e-5, atol=1e-5)


def test_the_best_words_are_found_only_when_asked_for():
    features, weight, _ = inputs()
    target = (features @ weight.t()).argmax(-1)
    counted, plain = (label_smoothed_loss(features, weight, target, 0.1, PAD, count_correct=c) for c in (True, False))
    assert counted.correct == target.ne(PAD).sum()
    assert plain.correct == 0
    assert torch.equal(counted.loss, plain.loss)


def test_no_gradient_is_made_without_need():
    features, weight, target = inputs()
    with torch.no_grad():
        assert not label_smoothed_loss(features, weight, target, 0.1, PAD).loss.requires_grad
    assert not label_smoothed_loss(features.detach(), weight.detach(), target, 0.1, PAD).loss.requires_grad


@pytest.mark.parametrize("words", [1, 8, WORDS])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_bf16_gradients_are_those_of_the_rounded_values(monkeypatch, words, scale):
    monkeypatch.setattr(label_smoothed_projection, "_BLOCK_WORDS", words)
    features, weight, target = inputs(scale)
    rounded = [features.bfloat16().float(), weight.bfloat16().float()]
    expected = label_smoothed_loss(*rounded, target, 0.1, PAD)
    with torch.autocast("cpu", torch.bfloat16):
        ours = label_smoothed_loss(features, weight, target, 0.1, PAD)
    torch.testing.assert_close(ours, expected, rtol=0.01, atol=0)
    gradients = (torch.autograd.grad(losses.loss, [features, weight]) for losses in (ours, expected))
    for ours, expected in zip(*gradients, strict=True):
        assert (ours - expected).norm() < 0.01 * expected.norm()


def test_a_batch_of_padding_costs_nothing():
    features, weight, target = inputs()
    losses = label_smoothed_loss(features, weight, torch.full_like(target, PAD), 0.1, PAD)
    losses.loss.backward()
    assert losses.loss == losses.nll_loss == losses.correct == 0
    assert not features.grad.any()
    assert not weight.grad.any()


def test_autocast_runs_the_products_in_its_precision():
    features, weight, target = inputs()
    exact = label_smoothed_loss(features, weight, target, 0.1, PAD)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = label_smoothed_loss(features, weight, target, 0.1, PAD)
    assert rounded.loss.dtype == torch.float32
    assert 0 < (rounded.loss - exact.loss).abs() < 0.01 * exact.loss
    rounded.loss.backward()
    assert features.grad.dtype == weight.grad.dtype == torch.float32


def sample():
    given = batch()
    target = given["prev_output_tokens"].roll(-1, 1)
    return {"net_input": given, "target": target, "ntokens": int((target != PAD).sum())}


@pytest.mark.parametrize("options", [{}, {"ignore_prefix_size": 2}, {"report_accuracy": True}], ids=str)
@pytest.mark.parametrize("arch", ["transformer", "transformer_sharing"])
def test_criterion_gives_and_logs_what_fairseq_s_does(arch, options):
    model = build(arch=arch)
    task = SimpleNamespace(target_dictionary=dictionary())
    results = []
    for kind in (LabelSmoothedCrossEntropyCriterion, FusedLabelSmoothedCrossEntropyCriterion):
        model.zero_grad()
        loss, size, logged = kind(task, False, 0.1, **options)(model, sample())
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        results.append((loss.detach(), size, {name: float(value) for name, value in logged.items()}, gradients))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


def test_each_sentence_s_loss_is_fairseq_s():
    model = build()
    task = SimpleNamespace(target_dictionary=dictionary())
    losses = [
        kind(task, False, 0.1)(model, sample(), reduce=False)[0]
        for kind in (LabelSmoothedCrossEntropyCriterion, FusedLabelSmoothedCrossEntropyCriterion)
    ]
    assert torch.equal(*losses)
    assert losses[0].numel() > 1


def test_adaptive_softmax_is_refused():
    model = build(share_all_embeddings=False, adaptive_softmax_cutoff=[10, 20])
    criterion = FusedLabelSmoothedCrossEntropyCriterion(SimpleNamespace(target_dictionary=dictionary()), False, 0.1)
    with pytest.raises(SharingError, match=r"^--criterion fused_.* cannot be .* --adaptive-softmax-cutoff; allowed: "):
        criterion(model, sample())


def test_a_resumed_run_takes_both_for_one():
    assert FusedLabelSmoothedCrossEntropyCriterion.__name__ == LabelSmoothedCrossEntropyCriterion.__name__
