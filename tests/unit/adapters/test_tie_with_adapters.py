"""Adapters that are fitted to a trained model when it is tied."""

from __future__ import annotations

import pytest
import torch
from depth_models import ALL, adapted
from sharing_cases import BY_NAME, LAYERS
from tied_models import CYCLE, STACKS, TIED, TIED_IDS, checkpoint_of, load, logits, own_layers, vanilla_checkpoint
from tiny_models import EMBED, arguments, assert_same_translations, build, build_case, tensors, translate

from fairseq_sharing.adapters.low_rank import fit_adapters
from fairseq_sharing.checkpoints.tie import tie
from fairseq_sharing.errors import SharingError

FULL = {"depth_lora": EMBED, "depth_bias": True, "depth_norm": True}


def stock(source: dict, norm: str):
    model = build(norm, arch="transformer").eval()
    model.load_state_dict(source["model"])
    return model


@pytest.mark.parametrize(("case", "norm", "init"), TIED, ids=TIED_IDS)
def test_full_rank_reproduces_the_source(case, norm, init):
    """For every map, scope and rule: the logits to 1e-5, and the same hypotheses."""
    source = vanilla_checkpoint(norm)
    options = {"sharing": "none", **case.options, **FULL}
    model, expected = load(tie(source, options, init), norm, **options), stock(source, norm)
    torch.testing.assert_close(logits(model), logits(expected), rtol=0, atol=1e-5)
    if init == "average":
        assert_same_translations(translate([model]), translate([expected]))


@pytest.mark.parametrize("options", [{"align": True}, {"fit_iterations": 2}])
def test_full_rank_reproduces_the_source_after_aligning_and_fitting(options, norm):
    source = vanilla_checkpoint(norm)
    model = load(tie(source, {**CYCLE, **FULL}, **options), norm, **CYCLE, **FULL)
    torch.testing.assert_close(logits(model), logits(stock(source, norm)), rtol=0, atol=1e-5)


def residual(source: dict, rank: int, iterations: int = 0) -> float:
    """Sum the squared differences between the matrices that the depths use and the trained ones."""
    options = {"sharing": "universal", "depth_lora": rank}
    model = load(tie(source, options, fit_iterations=iterations), **options)
    total = 0.0
    for stack in STACKS:
        for layer, trained in zip(getattr(model, stack).layers, own_layers(source["model"], stack), strict=True):
            for name in ("self_attn.q_proj", "self_attn.out_proj", "fc1", "fc2"):
                factors = layer.get_submodule(f"depth.lora.{name}")
                used = layer.get_parameter(f"{name}.weight") + factors.b @ factors.a
                total += (used - trained[f"{name}.weight"]).square().sum().item()
    return total


def test_the_error_falls_with_the_rank_and_with_the_iterations():
    source = vanilla_checkpoint()
    by_rank = [residual(source, rank) for rank in (1, 4, EMBED)]
    assert by_rank == sorted(by_rank, reverse=True)
    assert len(set(by_rank)) == 3
    assert by_rank[-1] < 1e-8
    by_iteration = [residual(source, 2, iterations) for iterations in (0, 1, 4)]
    assert by_iteration[0] > by_iteration[1] > by_iteration[2]


def test_iterations_find_what_layers_have_in_common():
    """Three layers are a common matrix plus a matrix of rank 2 each."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    common = draw(20, 12)
    targets = [common + draw(20, 2) @ draw(2, 12) for _ in range(3)]
    mean = torch.stack(targets).mean(0)
    errors = []
    for iterations in (0, 1, 10, 100):
        shared, factors = fit_adapters(targets, mean, 2, iterations, generator)
        errors.append(
            sum((w - shared - b @ a).square().sum().item() for w, (a, b) in zip(targets, factors, strict=True))
        )
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01 * errors[0]


def test_an_adapter_is_the_truncated_decomposition_with_balanced_factors():
    source = vanilla_checkpoint()
    options = {**CYCLE, "depth_lora": 3, "depth_lora_of": "fc1"}
    tied = tie(source, options)
    first, fourth = (own_layers(source["model"], "encoder")[depth]["fc1.weight"] for depth in (0, 3))
    mean = (first.double() + fourth.double()) / 2
    u, s, vt = torch.linalg.svd(fourth.double() - mean, full_matrices=False)
    best = (u[:, :3] * s[:3]) @ vt[:3]
    a, b = (tied["model"][f"encoder.layers.3.depth.lora.fc1.{factor}"] for factor in "ab")
    torch.testing.assert_close(b @ a, best.float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(a.norm(dim=1), b.norm(dim=0), rtol=1e-5, atol=0)
    torch.testing.assert_close(a.norm(dim=1), s[:3].sqrt().float(), rtol=1e-5, atol=0)


def test_a_depth_without_a_residual_can_still_be_trained():
    """With stepwise, the first and the last layer are those of the source: A is random, so that B gets a gradient."""
    tied = tie(vanilla_checkpoint(), {**CYCLE, "depth_lora": 3}, "stepwise")
    for depth in (0, 5):
        a, b = (tied["model"][f"encoder.layers.{depth}.depth.lora.fc2.{factor}"] for factor in "ab")
        assert not b.any()
        assert a.abs().min() > 0
        assert 0.01 < a.std() < 0.03
    assert tied["model"]["encoder.layers.3.depth.lora.fc2.b"].abs().min() > 0
    again = tie(vanilla_checkpoint(), {**CYCLE, "depth_lora": 3}, "stepwise")
    assert all(torch.equal(value, again["model"][name]) for name, value in tensors(tied["model"]).items())


def test_the_rule_is_the_mean_with_adapters_and_stepwise_without():
    source = vanilla_checkpoint()
    for options, rule in (({}, "stepwise"), ({"depth_lora": 2}, "average"), ({"depth_scale": True}, "stepwise")):
        default, named = (tie(source, {**CYCLE, **options}, init)["model"] for init in (None, rule))
        assert all(torch.equal(value, named[name]) for name, value in tensors(default).items())


def test_factors_start_at_one_and_biases_and_norms_are_those_of_the_layer():
    source = vanilla_checkpoint()
    options = {**CYCLE, "depth_scale": True, "depth_bias": True, "depth_norm": True}
    model = load(tie(source, options), **options)
    for stack in STACKS:
        for layer, trained in zip(getattr(model, stack).layers, own_layers(source["model"], stack), strict=True):
            assert torch.equal(layer.depth.scale.fc2, torch.ones_like(layer.depth.scale.fc2))
            for name in ("fc1.bias", "self_attn.k_proj.bias", "final_layer_norm.weight", "final_layer_norm.bias"):
                assert torch.equal(layer.get_parameter(name), trained[name])


def test_a_model_with_adapters_is_tied_with_the_matrices_that_it_uses(norm):
    """Its adapters are merged first. Full rank reproduces it."""
    model = adapted(norm)
    checkpoint = checkpoint_of(model, arguments(norm, sharing="cycle", unique_layers=3, **ALL))
    options = {"sharing": "sequence", "unique_layers": 2, **FULL}
    again = load(tie(checkpoint, options), norm, **options)
    assert not hasattr(again.encoder.layers[0].depth, "scale")
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=1e-5)


def test_equal_layers_give_their_model_with_any_adapters(norm):
    source = build_case(BY_NAME["universal"], norm).eval()
    checkpoint = checkpoint_of(source, arguments(norm, sharing="universal"))
    options = {**CYCLE, **ALL}
    torch.testing.assert_close(logits(load(tie(checkpoint, options), norm, **options)), logits(source), rtol=0, atol=0)


def test_the_checkpoint_states_the_kinds():
    tied = tie(vanilla_checkpoint(), {**CYCLE, "depth_lora": 3, "depth_lora_of": "v,q", "depth_scale": True})
    assert tied["model"]["_extra_state"]["depth"] == {"lora": {"rank": 3, "of": ["q", "v"]}, "scale": True}
    arguments_ = vars(tied["cfg"]["model"])
    assert (arguments_["depth_lora"], arguments_["depth_scale"], bool(arguments_["depth_bias"])) == (3, True, False)


@pytest.mark.parametrize(
    ("options", "settings", "expected"),
    [
        (
            {"encoder_layers": 9, "depth_lora": 2},
            {"init": "stepwise"},
            "--depth-lora 2: depth 6 of the encoder has no trained layer to fit; allowed: at most 6 layers",
        ),
        ({}, {"fit_iterations": 3}, "--fit-iterations 3: there are no adapters to fit; allowed: with --depth-lora"),
        ({"depth_lora": 2}, {"fit_iterations": -1}, "--fit-iterations -1: allowed: 0 to 1,000"),
        ({"depth_lora": 20}, {}, "--depth-lora 20: the smallest matrix has rank 16; allowed: 1 to 16"),
    ],
)
def test_what_cannot_be_fitted_is_refused(options, settings, expected):
    with pytest.raises(SharingError) as caught:
        tie(vanilla_checkpoint(), {**CYCLE, **options}, **settings)
    assert str(caught.value) == expected
    assert LAYERS == 6
