"""--compile: compiled layers compute the same as plain layers, with few graphs for all depths and shapes."""

from __future__ import annotations

import functools

import pytest
import torch
from component_cases import BY_NAME as COMPONENT_CASES
from depth_models import adapted
from sharing_cases import BY_NAME
from tiny_models import EMBED, VOCABULARY, batch, build, build_case, loss, perturb

from fairseq_sharing.errors import SharingError
from fairseq_sharing.fast import compiled_layer

# Source length, target length and sentences of a batch, and whether it has padding.
SHAPES = [
    *[(7, 7, 2, True), (5, 5, 1, False), (7, 8, 3, True), (2, 6, 4, False), (2, 2, 2, False), (9, 4, 1, False)],
    *[(EMBED, EMBED, EMBED, True), (6, 6, 6, True), (4, 9, 1, False), (8, 8, 8, False)],
    *[(sentences + 3, sentences + 1, sentences, sentences % 2 == 1) for sentences in range(2, 12)],
]


@pytest.fixture
def graphs(monkeypatch):
    """Count the graphs of each layer class, and run them uncompiled."""
    made: dict[type, int] = {}

    def compiled(kind):
        def count(graph, _inputs):
            made[kind] = made.get(kind, 0) + 1
            return graph.forward

        return torch.compile(kind.forward, dynamic=True, backend=count, fullgraph=True)

    torch._dynamo.reset()
    monkeypatch.setattr(compiled_layer, "compiled", functools.cache(compiled))
    yield made
    torch._dynamo.reset()


def shaped(src_len: int, tgt_len: int, sentences: int, padded: bool) -> dict[str, torch.Tensor]:
    """Make a batch. In a padded batch, the first sentence is half as long as the others."""
    generator = torch.Generator().manual_seed(src_len)
    source, target = (
        torch.randint(4, VOCABULARY, (sentences, length), generator=generator) for length in (src_len, tgt_len)
    )
    if padded:
        source[0, : src_len // 2] = 1
        target[0, tgt_len // 2 + 1 :] = 1
    lengths = source.ne(1).sum(1)
    return {"src_tokens": source, "src_lengths": lengths, "prev_output_tokens": target}


def gradients(model, inputs) -> dict[str, torch.Tensor]:
    """Return the gradient of each parameter that has one, with the same random numbers each time."""
    model.zero_grad()
    torch.manual_seed(1)
    loss(model, inputs).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("options", "shapes"),
    [
        ({}, SHAPES),
        # What else a layer adds or leaves out does not depend on the shape, so the special shapes are enough.
        ({"admin": "closed_form"}, SHAPES[:10]),
        ({"b2t": True}, SHAPES[:10]),
        ({"deepnorm": True, "decoder_no_ffn": True, "embedding_factor_dim": 8}, SHAPES[:10]),
    ],
    ids=["plain", "admin", "b2t", "others"],
)
def test_few_graphs_serve_all_depths_and_shapes(graphs, options, shapes):
    assert len(SHAPES) == 20
    options = {**BY_NAME["cycle-fast"].options, **options, "dropout": 0.1, "attention_dropout": 0.1}
    models = [build("post", compile=on, **options).train() for on in (False, True)]
    for shape in shapes:
        plain, fast = (gradients(model, shaped(*shape)) for model in models)
        assert plain.keys() == fast.keys()
        for name, gradient in plain.items():
            torch.testing.assert_close(fast[name], gradient, rtol=0, atol=2e-5)
    assert len(graphs) == 2
    assert all(count <= 3 for count in graphs.values()), graphs


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("name", ["none-fast", "cycle_rev-fast", "ffn_scope-fast"])
def test_gradients_are_those_of_the_fast_path(graphs, name, norm):
    plain, fast = (build_case(BY_NAME[name], norm, compile=on).train() for on in (False, True))
    assert list(plain.state_dict()) == list(fast.state_dict())
    theirs = gradients(plain, batch())
    for key, gradient in gradients(fast, batch()).items():
        torch.testing.assert_close(gradient, theirs[key], rtol=1e-5, atol=2e-5)
    assert all(count <= 3 for count in graphs.values()), graphs


@pytest.mark.parametrize("name", ["mixed", "tied_attention"])
def test_maps_of_components_need_no_more_graphs(graphs, name):
    options = {**COMPONENT_CASES[name].options, "fast": True}
    plain, fast = (perturb(build("post", compile=on, **options)).train() for on in (False, True))
    theirs = gradients(plain, batch())
    for key, gradient in gradients(fast, batch()).items():
        torch.testing.assert_close(gradient, theirs[key], rtol=1e-5, atol=2e-5)
    assert len(graphs) == 2
    assert all(count <= 3 for count in graphs.values()), graphs


def test_validation_and_decoding_run_as_before(graphs):
    plain, fast = (build_case(BY_NAME["cycle-fast"], "post", compile=on).eval() for on in (False, True))
    with torch.no_grad():
        assert torch.equal(loss(plain, batch()), loss(fast, batch()))
    assert not graphs


def test_admin_is_measured_without_a_graph(graphs):
    plain, fast = (build("post", fast=True, compile=on, admin="profile").train() for on in (False, True))
    for model in (plain, fast):
        loss(model, batch()).backward()
    names = [name for name, _ in plain.named_parameters() if "residual_weight" in name]
    for name in names:
        assert torch.equal(plain.get_parameter(name), fast.get_parameter(name))
    assert names
    assert graphs


def test_the_real_compiler():
    torch._dynamo.reset()
    case = BY_NAME["cycle_rev-fast"]
    plain, fast = (build_case(case, "post", compile=on, dropout=0.1).train() for on in (False, True))
    theirs = gradients(plain, batch())
    for name, gradient in gradients(fast, batch()).items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


def test_a_graph_outlives_a_change_of_the_map(graphs):
    plain, fast = (build("post", fast=True, compile=on, sharing="universal").train() for on in (False, True))
    for strategy in ("universal", "cycle", "none"):
        for model in (plain, fast):
            for stack, sharing in build("post", **BY_NAME[strategy].options).sharing.items():
                model.stacks[stack].change_map(sharing)
        theirs = gradients(plain, batch())
        ours = gradients(fast, batch())
        assert ours.keys() == theirs.keys()
        for name, gradient in ours.items():
            torch.testing.assert_close(gradient, theirs[name], rtol=0, atol=2e-5)
    for model in (plain, fast):
        model.encoder.freeze((0, 2))
    theirs = gradients(plain, batch())
    for name, gradient in gradients(fast, batch()).items():
        torch.testing.assert_close(gradient, theirs[name], rtol=0, atol=2e-5)
    assert all(count <= 3 for count in graphs.values()), graphs


def test_what_cannot_be_combined_is_refused():
    with pytest.raises(SharingError, match="--compile requires --fast"):
        build(compile=True)
    with pytest.raises(SharingError, match="--checkpoint-activations True cannot be combined"):
        build(compile=True, fast=True, checkpoint_activations=True)
    with pytest.raises(SharingError, match="--cross-self-attention True cannot be combined"):
        build(compile=True, fast=True, cross_self_attention=True)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_depth_parameters_are_applied_outside_of_the_graph(norm, graphs):
    """One graph still serves all depths, each with its own effective weights."""
    plain, model = adapted(norm, fast=True).train(), adapted(norm, fast=True, compile=True).train()
    for shape in SHAPES[:2]:
        expected, found = gradients(plain, shaped(*shape)), gradients(model, shaped(*shape))
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-4, msg=name)
    assert list(graphs.values()) == [2, 2]  # for several sentences and for one
