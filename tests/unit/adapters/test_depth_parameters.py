"""Depth parameters of a model: what belongs to a depth, the weights that it uses, and their gradients."""

from __future__ import annotations

import copy
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from depth_models import ALL, CYCLE, KINDS, adapted
from sharing_cases import BY_NAME, LAYERS
from step_by_step import check_step_by_step
from tiny_models import (
    EMBED,
    FFN,
    assert_same_translations,
    assert_tied,
    batch,
    build,
    build_case,
    loss,
    perturb,
    translate,
)

from fairseq_sharing.adapters.layer import effective
from fairseq_sharing.checkpoints.sharing_state import find_aliases
from fairseq_sharing.errors import SharingError
from fairseq_sharing.fast.attention import FastAttention, one_pass
from fairseq_sharing.layer_map import StackSharing
from fairseq_sharing.tying import depth_names

STACKS = ("encoder", "decoder")
SEQUENCE = StackSharing((0, 0, 1, 1, 2, 2))


def merged_by_hand(model, norm: str, **options):
    """Build fairseq's own transformer with the weights of each depth, computed from the definition."""
    stock = build(norm, arch="transformer", seed=99, **options)
    ours = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, parameter in stock.named_parameters():
            matrix, _, kind = name.rpartition(".")
            layer, _, inside = matrix.partition(".layers.")
            number, _, inside = inside.partition(".")
            depth = f"{layer}.layers.{number}.depth"
            value = ours[name].clone()
            if f"{depth}.lora.{inside}.a" in ours and kind == "weight":
                value += ours[f"{depth}.lora.{inside}.b"] @ ours[f"{depth}.lora.{inside}.a"]
            if f"{depth}.scale.{inside}" in ours:
                factors = ours[f"{depth}.scale.{inside}"]
                if inside == "fc2":
                    value = value if kind == "bias" else value @ torch.diag(factors)
                else:
                    value = torch.diag(factors) @ value
            parameter.copy_(value)
    return stock.eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fast", [False, True])
def test_every_path_uses_the_weights_of_the_depth(kind, fast, norm):
    """Training, evaluation, incremental decoding with a reordered beam and left padding: all as the definition."""
    model = perturb(build(norm, **CYCLE, **KINDS[kind], fast=fast)).eval()
    stock = merged_by_hand(model, norm)
    with torch.no_grad():
        expected = stock(**batch())[0]
        torch.testing.assert_close(model(**batch())[0], expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(model.train()(**batch())[0], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.eval()(**batch())[0].detach(), expected, rtol=0, atol=1e-5)
    check_step_by_step(model)
    assert_same_translations(translate([model]), translate([stock]))


def test_every_map_and_scope_works_with_all_kinds(case, norm):
    model = perturb(build(norm, **case.options, **ALL)).eval()
    with torch.no_grad():
        expected = merged_by_hand(model, norm)(**batch())[0]
        torch.testing.assert_close(model(**batch())[0], expected, rtol=0, atol=2e-5)
    names = dict(model.named_parameters(remove_duplicate=False))
    own = {f"{s}.layers.{d}.{n}" for s in STACKS for d in range(LAYERS) for n in depth_names(names_of(model, s, d))}
    for name, parameter in names.items():
        if name in own or ".layers." not in name:
            continue
        assert parameter is names[case.source(name)], name
    assert not own & find_aliases(model).keys()
    assert len({id(names[name]) for name in own}) == len(own)


def names_of(model, stack, depth):
    return getattr(model, stack).layers[depth]


def test_a_depth_owns_exactly_these_parameters():
    model = adapted()
    layer = model.decoder.layers[4]
    own = {name: tuple(layer.get_parameter(name).shape) for name in depth_names(layer)}
    matrices = [f"{a}.{m}_proj" for a in ("self_attn", "encoder_attn") for m in ("q", "k", "v", "out")] + ["fc1", "fc2"]
    norms = ["self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"]
    expected = {f"{m}.bias": (FFN if m == "fc1" else EMBED,) for m in [*matrices, *norms]}
    expected |= {f"{name}.weight": (EMBED,) for name in norms}
    for matrix in matrices:
        d_out, d_in = {"fc1": (FFN, EMBED), "fc2": (EMBED, FFN)}.get(matrix, (EMBED, EMBED))
        expected |= {f"depth.lora.{matrix}.a": (4, d_in), f"depth.lora.{matrix}.b": (d_out, 4)}
    for attention in ("self_attn", "encoder_attn"):
        expected |= {f"depth.scale.{attention}.{m}_proj": (EMBED,) for m in "kv"}
    assert own == {**expected, "depth.scale.fc2": (FFN,)}
    assert layer.fc1.weight is model.decoder.layers[1].fc1.weight


def test_only_the_listed_matrices_get_an_adapter():
    model = build(**CYCLE, depth_lora=2, depth_lora_of="fc2,q")
    assert set(depth_names(model.encoder.layers[0])) == {
        f"depth.lora.{matrix}.{factor}" for matrix in ("self_attn.q_proj", "fc2") for factor in "ab"
    }


@pytest.mark.parametrize("fast", [False, True])
def test_new_adapters_and_factors_change_nothing(norm, fast):
    plain = build_case(BY_NAME["cycle-fast" if fast else "cycle"], norm).eval()
    model = build(norm, **CYCLE, depth_lora=4, depth_scale=True, fast=fast).eval()
    own = {name: value for name, value in model.state_dict().items() if ".depth." in name or name == "_extra_state"}
    model.load_state_dict({**plain.state_dict(), **own})
    with torch.no_grad():
        assert torch.equal(model(**batch())[0], plain(**batch())[0])
    layer = model.encoder.layers[4]
    assert torch.equal(layer.depth.lora.fc1.b, torch.zeros(FFN, 4))
    assert torch.equal(layer.depth.scale.fc2, torch.ones(FFN))
    assert 0.01 < layer.depth.lora.fc1.a.std().item() < 0.03


def test_depths_of_a_set_differ_after_an_update_and_still_share():
    model = build(**CYCLE, depth_lora=4, depth_scale=True).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss(model, batch()).backward()
    optimizer.step()
    one, other = model.encoder.layers[1], model.encoder.layers[4]
    assert not torch.equal(one.depth.lora.fc1.b, other.depth.lora.fc1.b)
    assert not torch.equal(one.depth.scale.fc2, other.depth.scale.fc2)
    assert_tied(BY_NAME["cycle"], _without_depth(model))


def _without_depth(model):
    stripped = copy.deepcopy(model)
    for stack in STACKS:
        for layer in getattr(stripped, stack).layers:
            del layer.depth
    return stripped


@pytest.mark.parametrize("fast", [False, True])
def test_gradients_are_those_of_independent_layers(norm, fast):
    """That of a shared matrix is the sum over its depths; those of A and B follow from the gradient of one depth."""
    model = adapted(norm, fast=fast)
    stock = merged_by_hand(model, norm)
    for each in (model, stock):
        each.zero_grad()
        loss(each, batch()).backward()
    for stack, matrix in (("encoder", "self_attn.q_proj"), ("decoder", "encoder_attn.out_proj"), ("decoder", "fc1")):
        ours, theirs = getattr(model, stack).layers, getattr(stock, stack).layers
        gradient = {d: theirs[d].get_parameter(f"{matrix}.weight").grad for d in range(LAYERS)}
        total = ours[1].get_parameter(f"{matrix}.weight").grad
        torch.testing.assert_close(total, gradient[1] + gradient[4], rtol=1e-4, atol=1e-4)
        for depth in (1, 4):
            a, b = (ours[depth].get_parameter(f"depth.lora.{matrix}.{factor}") for factor in "ab")
            torch.testing.assert_close(a.grad, b.T @ gradient[depth], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(b.grad, gradient[depth] @ a.T, rtol=1e-4, atol=1e-4)
    layer, theirs = model.encoder.layers[4], stock.encoder.layers[4]
    unscaled = layer.fc2.weight + layer.depth.lora.fc2.b @ layer.depth.lora.fc2.a
    expected = (theirs.fc2.weight.grad * unscaled).sum(0)
    torch.testing.assert_close(layer.depth.scale.fc2.grad, expected, rtol=1e-4, atol=1e-4, check_stride=False)


def test_recomputed_activations_use_the_weights_of_the_depth(norm):
    models = [adapted(norm, checkpoint_activations=on).train() for on in (False, True)]
    for model in models:
        loss(model, batch()).backward()
    expected = {name: parameter.grad for name, parameter in models[0].named_parameters()}
    for name, parameter in models[1].named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-4, msg=name)


def test_depths_with_different_keys_project_the_source_separately():
    """Layers that share unadapted projections still project it once."""
    counts = {}
    for options in ({"depth_lora": 2, "depth_lora_of": "k"}, {"depth_lora": 2, "depth_lora_of": "q"}):
        model = perturb(build(**CYCLE, **options, fast=True)).train()
        projected = []
        original = FastAttention._project_source

        def counted(self, source, seen=projected, original=original):
            seen.append(self)
            return original(self, source)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FastAttention, "_project_source", counted)
            model(**batch())
        counts[options["depth_lora_of"]] = len(projected)
    assert counts == {"k": LAYERS, "q": 3}


def test_a_projected_source_keeps_its_weights_for_the_pass():
    """It is found by their addresses, which the weights of the next depth could get if these were freed."""
    attention = adapted(fast=True).decoder.layers[4].encoder_attn
    source = torch.randn(5, 2, EMBED)
    with torch.no_grad(), one_pass():
        for _ in range(2):
            temporary = torch.randn(EMBED, EMBED)
            vars(attention.k_proj)["weight"] = temporary
            keys, _ = attention.shared_source(source)
            expected = source @ temporary.T + attention.k_proj.bias
            torch.testing.assert_close(keys.permute(2, 0, 1, 3).flatten(2), expected, rtol=0, atol=1e-5)
            kept = weakref.ref(temporary)
            del vars(attention.k_proj)["weight"], temporary
            assert kept() is not None
    assert kept() is None


# Merged weights.


def test_weights_are_merged_once_for_decoding():
    model = adapted()
    with torch.no_grad():
        model(**batch())
        first = model.encoder.layers[4].depth.merged
        model(**batch())
    assert model.encoder.layers[4].depth.merged is first
    model.train()(**batch())
    assert model.encoder.layers[4].depth.merged is None


def _step(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)


CHANGES = {
    "an update": _step,
    "loading": lambda model: model.load_state_dict(adapted(seed=5).state_dict()),
    "another type": lambda model: model.double(),
    "another map": lambda model: [s.change_map(SEQUENCE) for s in model.stacks.values()],
}


@pytest.mark.parametrize("change", CHANGES)
def test_merged_weights_follow_their_parameters(change):
    model = adapted()
    with torch.no_grad():
        model(**batch())
        CHANGES[change](model)
        found = model(**batch())[0]
        for stack in STACKS:
            for layer in getattr(model, stack).layers:
                layer.depth.merged = None
        assert torch.equal(model(**batch())[0], found)


def test_names_and_values_of_parameters_are_never_hidden_outside_of_the_layer():
    model = adapted()
    before = {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}
    model(**batch())
    layer = model.encoder.layers[4]
    with effective(layer), effective(layer):
        assert layer.fc1.weight is not layer.fc1._parameters["weight"]
        assert {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)} == before
    assert layer.fc1.weight is layer.fc1._parameters["weight"]
    with pytest.raises(RuntimeError, match="on purpose"), effective(layer):
        raise RuntimeError("on purpose")
    assert isinstance(layer.fc1.weight, torch.nn.Parameter)
    assert {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)} == before


def test_threads_that_use_one_model_do_not_disturb_each_other():
    model = adapted()
    with torch.no_grad():
        expected = model(**batch())[0]

    def run(_number):
        with torch.no_grad():
            return model(**batch())[0]

    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(found, expected) for found in pool.map(run, range(16)))
    assert isinstance(model.encoder.layers[4].fc1.weight, torch.nn.Parameter)


def test_a_copy_of_a_model_uses_its_own_weights():
    model = adapted()
    copied = copy.deepcopy(model)
    with torch.no_grad():
        expected = model(**batch())[0]
        _step(model)
        assert torch.equal(copied(**batch())[0], expected)
        assert not torch.equal(model(**batch())[0], expected)


# Options.


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"depth_lora": 0}, "--depth-lora 0: the rank of an adapter; allowed: 1 or more"),
        ({"depth_lora": 17}, "--depth-lora 17: the smallest matrix has rank 16; allowed: 1 to 16"),
        ({"depth_lora_of": "q,v"}, "--depth-lora-of q,v: there are no adapters; allowed: with --depth-lora"),
        (
            {"depth_lora": 2, "depth_lora_of": "q,w"},
            "--depth-lora-of q,w: allowed: a comma-separated list of q, k, v, out, fc1, fc2",
        ),
        (
            {"depth_lora": 2, "quant_noise_pq": 0.1, "sharing": "none", "unique_layers": None},
            "--quant-noise-pq 0.1 cannot be combined with --depth-lora 2: the noise would change the shared matrix, "
            "not the one that the depth uses; allowed: 0",
        ),
        (
            {"depth_scale": True, "ddp_backend": "fully_sharded", "sharing": "none", "unique_layers": None},
            "--ddp-backend fully_sharded cannot be combined with --depth-scale, which needs whole matrices; allowed: "
            "c10d, legacy_ddp, no_c10d, pytorch_ddp",
        ),
    ],
)
def test_impossible_options_are_refused(options, expected):
    with pytest.raises(SharingError) as caught:
        build(**{**CYCLE, **options})
    assert str(caught.value) == expected
