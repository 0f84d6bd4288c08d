"""The entropy regularizer: values, gradients, and independence of how a batch is split."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from fairseq.logging import metrics
from moeut_models import build_moeut
from tiny_models import PAD, batch, build, dictionary, perturb

from fairseq_sharing.errors import SharingError
from fairseq_sharing.moeut.moe_cross_entropy import MoECrossEntropyCriterion, evenness
from fairseq_sharing.moeut.routing import Router, RouterUsage, Routing, negative_entropy

NUM = 5


def usage(logits: torch.Tensor, keep: torch.Tensor | None = None) -> RouterUsage:
    """Return the usage of a one-head router with these logits, (T, B, NUM)."""
    router = Router(8, NUM, 1)
    length, tokens_batch, _ = logits.shape
    flat = logits.flatten(0, 1)[:, None]
    routing = Routing(flat.argmax(-1, keepdim=True), torch.ones(len(flat), 1, 1), flat)
    kept = torch.ones(length, tokens_batch, dtype=torch.bool) if keep is None else keep
    return RouterUsage.of(router, routing, "ffn", kept)


def draw(*shape, seed=2):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("pool_batch", [False, True])
def test_even_choices_have_the_least_value_and_certain_ones_the_greatest(pool_batch):
    even = negative_entropy([usage(torch.full((4, 2, NUM), 3.0))], pool_batch)
    torch.testing.assert_close(even, torch.full((2,), -math.log(NUM)))
    certain = torch.zeros(4, 2, NUM)
    certain[..., 1] = 1e4
    torch.testing.assert_close(negative_entropy([usage(certain)], pool_batch), torch.zeros(2))


def test_it_is_the_entropy_of_the_mean_over_tokens_and_repeats():
    first, second = draw(4, 2, NUM), draw(4, 2, NUM, seed=3)
    p = torch.cat([first, second]).softmax(-1).mean(0)
    expected = (p * p.log()).sum(-1)
    pooled = negative_entropy([usage(first), usage(second)], False)
    torch.testing.assert_close(pooled, expected)
    apart = sum(negative_entropy([usage(one)], False) for one in (first, second)) / 2
    assert (pooled - apart).abs().min() > 1e-3, "pooling is not the mean of each repeat's value"
    p = p.mean(0)
    whole = negative_entropy([usage(first), usage(second)], True)
    torch.testing.assert_close(whole, (p * p.log()).sum().expand(2))


def test_padding_counts_for_nothing():
    logits, keep = draw(6, 2, NUM), torch.ones(6, 2, dtype=torch.bool)
    keep[4:, 0] = False
    masked = negative_entropy([usage(logits, keep)], False)
    torch.testing.assert_close(masked[:1], negative_entropy([usage(logits[:4, :1])], False))
    assert usage(logits, keep).counts.sum() == 10


def criterion(**options) -> MoECrossEntropyCriterion:
    task = SimpleNamespace(target_dictionary=dictionary())
    return MoECrossEntropyCriterion(task, options.pop("sentence_avg", False), 0.1, **options)


def sample(rows: slice = slice(None)) -> dict:
    inputs = {name: tensor[rows] for name, tensor in batch().items()}
    target = inputs["prev_output_tokens"].roll(-1, 1)
    return {"net_input": inputs, "target": target, "ntokens": int((target != PAD).sum())}


def gradients(model, loss_function, samples) -> list[torch.Tensor]:
    """Gradients of an update, as in fairseq: the sum over micro-batches divided by the sum of their sizes."""
    model.zero_grad()
    total = 0
    for one in samples:
        loss, size, _ = loss_function(model, one)
        loss.backward()
        total += size
    return [parameter.grad / total for parameter in model.parameters()]


@pytest.mark.parametrize("sentence_avg", [False, True])
def test_how_a_batch_is_split_changes_nothing(sentence_avg):
    """Micro-batches of --update-freq and batches of several ranks are summed in the same way."""
    model = perturb(build_moeut(sharing="cycle", unique_layers=2)).train()
    balanced = criterion(ffn_entropy=1.0, attention_entropy=1.0, entropy_scope="sequence", sentence_avg=sentence_avg)
    whole = gradients(model, balanced, [sample()])
    split = gradients(model, balanced, [sample(slice(0, 1)), sample(slice(1, 3))])
    for one, other in zip(whole, split, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    plain = gradients(model, criterion(ffn_entropy=0.0, attention_entropy=0.0), [sample()])
    assert max((one - other).abs().max() for one, other in zip(whole, plain, strict=True)) > 1e-3


def test_every_router_row_is_reached():
    model = perturb(build_moeut(sharing="cycle", unique_layers=2)).train()
    entropies = criterion(entropy_scope="sequence").entropies(model(**batch(), return_usage=True)[1]["usage"])
    sum(weight * entropy.sum() for weight, entropy in entropies).backward()
    routers = [module.weight for module in model.modules() if isinstance(module, Router)]
    assert all((weight.grad.abs().sum(1) > 0).all() for weight in routers)


def test_sets_are_summed_and_bounded_by_their_logarithms():
    model = build_moeut("transformer_lm_moeut", sharing="cycle", unique_layers=2).train()
    tokens = torch.randint(4, 50, (3, 12))
    entropies = criterion().entropies(model(tokens, return_usage=True)[1]["usage"])
    assert len(entropies) == 2 * 3, "two sets of value, output and feed-forward routers, in six layers"
    total = sum(weight * entropy.mean() for weight, entropy in entropies)
    bound = 2 * (0.01 * math.log(6) + 2 * 0.001 * math.log(4))
    assert 0.9 * bound < total <= bound


def test_translation_pools_the_batch_and_a_language_model_a_sequence():
    lm = build_moeut("transformer_lm_moeut").train()
    used = lm(torch.randint(4, 50, (3, 12)), return_usage=True)[1]["usage"]
    assert all(len(set(entropy.tolist())) > 1 for _, entropy in criterion().entropies(used))
    used = build_moeut().train()(**batch(), return_usage=True)[1]["usage"]
    assert all(len(set(entropy.tolist())) == 1 for _, entropy in criterion().entropies(used))


@pytest.mark.parametrize("options", [{}, {"ignore_prefix_size": 2}, {"report_accuracy": True}], ids=str)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "with a bias"])
def test_without_the_reward_it_is_fairseq_s_loss(tied, options):
    model = build_moeut(sharing="cycle", unique_layers=2, share_all_embeddings=tied).eval()
    assert (model.decoder.output_projection.bias is None) == tied
    plain = LabelSmoothedCrossEntropyCriterion(SimpleNamespace(target_dictionary=dictionary()), False, 0.1, **options)
    results = []
    for kind in (plain, criterion(**options)):
        model.zero_grad()
        loss, size, logged = kind(model, sample())
        loss.backward()
        known = ("loss", "nll_loss", "ntokens", "nsentences", "sample_size", "n_correct", "total")
        gradients = {name: p.grad for name, p in model.named_parameters()}
        results.append(
            (loss.detach(), size, {name: float(logged[name]) for name in known if name in logged}, gradients)
        )
    assert results[0][2].keys() == results[1][2].keys()
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(criterion(**options)(model, sample(), reduce=False)[0], plain(model, sample(), reduce=False)[0])


def test_validation_has_no_regularizer_and_logs_what_was_chosen():
    model = perturb(build_moeut(sharing="cycle", unique_layers=2)).eval()
    plain = criterion(ffn_entropy=0.0, attention_entropy=0.0)(model, sample())[0]
    with metrics.aggregate() as logged:
        outputs = []
        for rows in (slice(0, 1), slice(1, 3)):
            _, _, output = criterion(ffn_entropy=1.0, log_expert_usage=True)(model, sample(rows))
            outputs.append(output)
            # Batch by batch, as in fairseq's validation.
            MoECrossEntropyCriterion.reduce_metrics([output])
    torch.testing.assert_close(sum(output["loss"] for output in outputs), plain.detach())
    values = logged.get_smoothed_values()
    counts = torch.tensor(values["encoder_ffn_3_choices"])
    assert counts.sum() == 15 * 2, "two experts for each of 15 source tokens"
    assert values["encoder_ffn_3_evenness"] == pytest.approx(evenness(counts.double()).item(), abs=1e-4)
    assert values["encoder_ffn_3_dead"] == pytest.approx((counts == 0).double().mean().item())
    assert len(values["decoder_self_attn_value_6_choices"]) == 2 * 4
    assert {name for name in values if "encoder_attn_value" in name and "dead" in name} == {
        "decoder_encoder_attn_value_1_dead",
        "decoder_encoder_attn_value_2_dead",
    }, "computed once per parameter set"


def test_training_logs_the_mean_over_layers():
    model = perturb(build_moeut()).train()
    loss, size, output = criterion()(model, sample())
    with metrics.aggregate() as logged:
        MoECrossEntropyCriterion.reduce_metrics([output, output])
    values = logged.get_smoothed_values()
    assert values["balance"] == pytest.approx((loss - output["loss"]).item() / size / math.log(2), abs=1e-4)
    assert 0.5 < values["decoder_ffn_evenness"] <= 1
    logged.load_state_dict(logged.state_dict())  # as stored in a checkpoint


def test_a_model_without_banks_is_refused():
    with pytest.raises(SharingError, match="--criterion moe_cross_entropy requires a model with expert banks"):
        criterion()(build(), sample())
    with pytest.raises(SharingError, match=r"--ffn-entropy must be at least 0, got -1; nearest: 0"):
        criterion(ffn_entropy=-1)


def test_adaptive_softmax_is_refused():
    model = build_moeut(share_all_embeddings=False, adaptive_softmax_cutoff=[10, 20])
    with pytest.raises(SharingError, match=r"^--criterion moe_cross_entropy cannot be .* --adaptive-softmax-cutoff; "):
        criterion()(model, sample())


def test_the_dense_baseline_trains_with_it():
    options = dict.fromkeys(("attention_experts", "attention_top_k", "ffn_experts", "ffn_top_k", "expert_dim"))
    model = build_moeut("transformer_lm_moeut_dense_44m", **options, decoder_ffn_embed_dim=24).train()
    tokens = torch.randint(4, 50, (3, 12))
    one = {"net_input": {"src_tokens": tokens}, "target": tokens, "ntokens": tokens.numel()}
    loss, _, output = criterion()(model, one)
    assert torch.equal(loss.detach(), output["loss"])
    assert output["balance"] == 0
