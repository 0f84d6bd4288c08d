"""A trained model becomes one with shared layers."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from sharing_cases import BY_NAME, LAYERS
from tied_models import (
    CYCLE,
    PLAIN,
    STACKS,
    TIED,
    TIED_IDS,
    checkpoint_of,
    load,
    logits,
    own_layers,
    vanilla_checkpoint,
)
from tiny_models import EMBED, FFN, HEADS, arguments, assert_tied, build, build_case, tensors

from fairseq_sharing.checkpoints.align import align_layer
from fairseq_sharing.checkpoints.initial_values import INITS
from fairseq_sharing.checkpoints.sharing_state import find_aliases
from fairseq_sharing.checkpoints.tie import tie
from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import StackSharing


@pytest.fixture(params=PLAIN, ids=lambda case: case.name)
def case(request):
    """Each strategy, a custom map, partial scopes, and stacks that differ; the fast path has the same weights."""
    return request.param


def options_of(case) -> dict:
    return {"sharing": "none", **case.options}


# Values.


@pytest.mark.parametrize("init", INITS)
def test_an_identity_map_gives_the_input_back(init, norm):
    source = vanilla_checkpoint(norm)
    tied = tie(source, {"sharing": "none"}, init)
    shared_embeddings = {"decoder.embed_tokens.weight", "decoder.output_projection.weight"}
    assert tied["model"].keys() - {"_extra_state"} == source["model"].keys() - shared_embeddings
    assert all(torch.equal(value, source["model"][name]) for name, value in tensors(tied["model"]).items())
    vanilla = build(norm, arch="transformer")
    vanilla.load_state_dict(source["model"])
    assert torch.equal(logits(load(tied, norm)), logits(vanilla))
    again = tie({"cfg": tied["cfg"], "model": copy.deepcopy(tied["model"])}, {"sharing": "none"}, init)
    assert list(again["model"]) == list(tied["model"])
    assert again["model"]["_extra_state"] == tied["model"]["_extra_state"]


@pytest.mark.parametrize(("case", "norm", "init"), TIED, ids=TIED_IDS)
def test_equal_layers_give_the_model_that_they_are_in(case, norm, init):
    """Any rule, any map and any scope: the source has one layer, used at all depths."""
    source = build_case(BY_NAME["universal"], norm).eval()
    checkpoint = checkpoint_of(source, arguments(norm, **BY_NAME["universal"].options))
    tied = tie(checkpoint, options_of(case), init, align=init == "average")
    model = load(tied, norm, **case.options)
    assert_tied(case, model)
    torch.testing.assert_close(logits(model), logits(source), rtol=0, atol=0)


@pytest.mark.parametrize(("case", "norm", "init"), TIED, ids=TIED_IDS)
def test_every_tensor_is_filled_by_the_rule_or_stays_with_its_depth(case, norm, init):
    source = vanilla_checkpoint(norm)
    model = load(tie(source, options_of(case), init), norm, **case.options)
    assert_tied(case, model)
    ours = dict(model.named_parameters(remove_duplicate=False))
    for stack in STACKS:
        layer_map, layers = case.layer_map(stack), own_layers(source["model"], stack)
        sets = max(layer_map) + 1
        stepwise = [int(m * (LAYERS - 1) / max(sets - 1, 1) + 0.5) for m in range(sets)]
        for depth, label in enumerate(layer_map):
            uses = [i for i, other in enumerate(layer_map) if other == label]
            sources = {"average": uses, "first": uses[:1], "stepwise": [stepwise[label]]}[init]
            for name in layers[depth]:
                expected = layers[depth][name]
                if case.ties(name):
                    expected = sum(layers[i][name] for i in sources) / len(sources)
                value = ours[f"{stack}.layers.{depth}.{name}"]
                torch.testing.assert_close(value.detach(), expected, rtol=0, atol=1e-6)
                if not case.ties(name) or len(sources) == 1:
                    assert torch.equal(value, expected), name
    assert torch.equal(ours["encoder.embed_tokens.weight"], source["model"]["encoder.embed_tokens.weight"])


def test_the_layers_of_a_shared_source_are_those_that_it_applies(case, norm, model):
    """Its own map is forgotten: the mean is over effective layers."""
    checkpoint = checkpoint_of(model, arguments(norm, **case.options))
    tied = tie(checkpoint, {"sharing": "sequence", "unique_layers": 2}, "average")
    shared = load(tied, norm, sharing="sequence", unique_layers=2)
    for stack in STACKS:
        source = getattr(model, stack).layers
        for number in range(2):
            expected = sum(source[i].fc1.weight for i in range(3 * number, 3 * number + 3)) / 3
            found = getattr(shared, stack).layers[3 * number + 1].fc1.weight
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_state_dict_is_written_as_the_model_writes_it(case, norm):
    tied = tie(vanilla_checkpoint(norm), options_of(case))
    written = load(tied, norm, **case.options).state_dict()
    assert list(tied["model"]) == list(written)
    assert tied["model"]["_extra_state"] == written["_extra_state"]
    assert not find_aliases(load(tied, norm, **case.options)).keys() & tied["model"].keys()


def test_stacks_can_have_different_maps_and_scopes():
    options = {"encoder_sharing": "universal", "encoder_sharing_scope": "ffn", "decoder_sharing": "sandwich"}
    tied = tie(vanilla_checkpoint(), options)
    model = load(tied, **options)
    assert model.sharing == {
        "encoder": StackSharing((0,) * 6, ("ffn",)),
        "decoder": StackSharing((0, 1, 1, 1, 1, 2)),
    }


def test_the_depth_can_change_if_every_set_can_be_filled():
    source = vanilla_checkpoint()
    options = {**CYCLE, "encoder_layers": 9, "decoder_layers": 3}
    model = load(tie(source, options), **options)
    assert [len(model.encoder.layers), len(model.decoder.layers)] == [9, 3]
    assert torch.equal(model.encoder.layers[7].fc2.bias, source["model"]["encoder.layers.3.fc2.bias"])
    assert torch.equal(model.decoder.layers[2].fc2.bias, source["model"]["decoder.layers.5.fc2.bias"])
    with pytest.raises(
        SharingError, match=r"^--init average needs layer 8 for a map of 9 layers, but .* layers 0 to 5"
    ):
        tie(source, options, "average")
    with pytest.raises(
        SharingError, match=r"^encoder.layers.6.\S+ belongs to the depth, but .* has 6 layers; allowed: "
    ):
        tie(source, {**options, "sharing_scope": "ffn"})


# Alignment.


def permuted_copies(norm: str) -> dict:
    """A vanilla checkpoint whose layers compute the same, in a different order of units and heads each."""
    checkpoint = vanilla_checkpoint(norm)
    state, generator = checkpoint["model"], torch.Generator().manual_seed(4)
    for stack in STACKS:
        layers = own_layers(state, stack)
        for depth in range(1, LAYERS):
            units = torch.randperm(FFN, generator=generator)
            for name, first in layers[0].items():
                value = first
                if name.startswith("fc1."):
                    value = first[units]
                elif name == "fc2.weight":
                    value = first[:, units]
                elif depth % 2 and re.search(r"attn\.[qkv]_proj", name):
                    value = first.roll(EMBED // HEADS, 0)
                elif depth % 2 and name.endswith("out_proj.weight"):
                    value = first.roll(EMBED // HEADS, 1)
                state[f"{stack}.layers.{depth}.{name}"] = value.clone()
    return checkpoint


def test_aligned_copies_of_a_layer_average_to_it(norm):
    source = permuted_copies(norm)
    vanilla = build(norm, arch="transformer")
    vanilla.load_state_dict(source["model"])
    expected = logits(vanilla)
    aligned = load(tie(source, CYCLE, "average", align=True), norm, **CYCLE)
    torch.testing.assert_close(logits(aligned), expected, rtol=0, atol=1e-5)
    first = own_layers(source["model"], "decoder")[0]
    assert all(torch.equal(aligned.decoder.layers[0].state_dict()[name], value) for name, value in first.items())
    mixed = load(tie(source, CYCLE, "average"), norm, **CYCLE)
    assert (logits(mixed) - expected).abs().max() > 0.01


def test_an_aligned_model_computes_the_same_and_is_closer_to_its_mean(norm):
    state = vanilla_checkpoint(norm)["model"]
    vanilla = build(norm, arch="transformer")
    vanilla.load_state_dict(state)
    expected, heads = logits(vanilla), {"self_attn": HEADS, "encoder_attn": HEADS}
    for stack in STACKS:
        layers = own_layers(state, stack)
        for depth in range(3, LAYERS):
            aligned = align_layer(layers[depth], layers[depth - 3], heads)
            state.update({f"{stack}.layers.{depth}.{name}": value for name, value in aligned.items()})
            distances = [
                sum(float((made - layers[depth - 3][name]).pow(2).sum()) for name, made in layer.items())
                for layer in (aligned, layers[depth])
            ]
            assert distances[0] < distances[1], "twice the squared distance to the mean of the two"
    assert not torch.equal(vanilla.encoder.layers[4].fc1.weight, state["encoder.layers.4.fc1.weight"])
    vanilla.load_state_dict(state)
    torch.testing.assert_close(logits(vanilla), expected, rtol=0, atol=1e-5)


def test_alignment_leaves_what_is_out_of_the_scope_as_it_is(norm):
    source, options = vanilla_checkpoint(norm), {**CYCLE, "sharing_scope": "self_attn,encoder_attn"}
    tied, plain = (tie(source, options, "average", align=align)["model"] for align in (True, False))
    for name, value in tensors(plain).items():
        if "_attn." not in name:
            assert torch.equal(tied[name], value), name
            assert torch.equal(source["model"][name], value), name
    assert any(not torch.equal(tied[name], value) for name, value in tensors(plain).items())


# Options.


@pytest.mark.parametrize(
    ("options", "rule", "message"),
    [
        (CYCLE, ("stepwise", True), "--align with --init stepwise: nothing is averaged; allowed: --init average"),
        (
            {"unique_layers": 3},
            (),
            "--sharing: missing; give it for both stacks, or --encoder-sharing or --decoder-sharing",
        ),
        ({"sharing": "cycle"}, (), "--unique-layers: missing; --sharing cycle needs a value from 1 to the number of "),
        ({"sharing": "custom", "layer_map": "0,1"}, (), "--layer-map must have 6 labels (the number of layers), got 2"),
        ({**CYCLE, "sharing_scope": "fc1"}, (), "--sharing-scope must be layer, or some of self_attn,"),
    ],
)
def test_options_that_give_no_model_are_refused(options, rule, message):
    with pytest.raises(SharingError, match=f"^{re.escape(message)}"):
        tie(vanilla_checkpoint(), options, *rule)


def test_regularization_of_independent_layers_is_left_out():
    source = vanilla_checkpoint()
    source["cfg"]["model"].encoder_layerdrop, source["cfg"]["model"].store_ema = 0.1, True
    tied = vars(tie(source, CYCLE)["cfg"]["model"])
    assert (tied["encoder_layerdrop"], tied["store_ema"]) == (0, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("decoder.layers.2.fc1.bias"), "the checkpoint's tensor decoder.layers.2.fc1.bias: missing"),
        (
            lambda s: s.update({"encoder.extra": torch.ones(1)}),
            "the checkpoint's tensor encoder.extra is not in the model that its arguments describe",
        ),
        (
            lambda s: s.update({"decoder.output_projection.weight": torch.ones(50, EMBED)}),
            "the checkpoint has different weights for encoder.embed_tokens.weight and decoder.output_projection.weight",
        ),
        (lambda s: s.update({"decoder.layers.2.fc1.bias": torch.ones(3)}), "the checkpoint's tensor decoder.layers.2"),
    ],
)
def test_weights_that_are_not_those_of_the_arguments_are_refused(change, message):
    source = vanilla_checkpoint()
    change(source["model"])
    with pytest.raises(SharingError, match=f"^{re.escape(message)}"):
        tie(source, {"sharing": "none"})
