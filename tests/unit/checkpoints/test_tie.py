"""A trained model becomes one with shared layers."""

from __future__ import annotations

import copy
import re
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from fairseq import models
from moeut_models import BANKS
from sharing_cases import BY_NAME, CASES, LAYERS
from tiny_models import (
    EMBED,
    FFN,
    HEADS,
    arguments,
    assert_tied,
    batch,
    build,
    build_case,
    dictionary,
    perturb,
    tensors,
)

from fairseq_sharing.checkpoints.initial_values import INITS
from fairseq_sharing.checkpoints.sharing_state import find_aliases
from fairseq_sharing.checkpoints.tie import tie
from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import StackSharing

CYCLE = {"sharing": "cycle", "unique_layers": 3}
STACKS = ("encoder", "decoder")


@pytest.fixture(params=[case for case in CASES if "fast" not in case.options], ids=lambda case: case.name)
def case(request):
    """Each strategy, a custom map, partial scopes, and stacks that differ; the fast path has the same weights."""
    return request.param


def options_of(case) -> dict:
    return {"sharing": "none", **case.options}


def checkpoint_of(model, args: Namespace) -> dict:
    """A checkpoint as fairseq writes it, of a model that was not trained."""
    return {"cfg": {"model": args}, "model": copy.deepcopy(model.state_dict())}


def vanilla_checkpoint(norm: str = "post", seed: int = 1, **changes) -> dict:
    model = perturb(build(norm, seed=seed, arch="transformer", **changes))
    return checkpoint_of(model, arguments(norm, "transformer", **changes))


def load(tied: dict, norm: str = "post", **changes):
    """Load a tied checkpoint into the model that the command line gives."""
    model = build(norm, seed=9, **changes).eval()
    model.load_state_dict(tied["model"], strict=True)
    return model


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch())[0]


def own_layers(state: dict, stack: str) -> list[dict[str, torch.Tensor]]:
    layers: list[dict[str, torch.Tensor]] = [{} for _ in range(LAYERS)]
    for name, value in state.items():
        if match := re.fullmatch(rf"{stack}\.layers\.(\d+)\.(.+)", name):
            layers[int(match[1])][match[2]] = value
    return layers


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


@pytest.mark.parametrize("init", INITS)
def test_equal_layers_give_the_model_that_they_are_in(case, norm, init):
    """Any rule, any map and any scope: the source has one layer, used at all depths."""
    source = build_case(BY_NAME["universal"], norm).eval()
    checkpoint = checkpoint_of(source, arguments(norm, **BY_NAME["universal"].options))
    tied = tie(checkpoint, options_of(case), init, align=init == "average")
    model = load(tied, norm, **case.options)
    assert_tied(case, model)
    torch.testing.assert_close(logits(model), logits(source), rtol=0, atol=0)


@pytest.mark.parametrize("init", INITS)
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


def test_alignment_leaves_what_is_out_of_the_scope_as_it_is(norm):
    source, options = vanilla_checkpoint(norm), {**CYCLE, "sharing_scope": "self_attn,encoder_attn"}
    tied, plain = (tie(source, options, "average", align=align)["model"] for align in (True, False))
    for name, value in tensors(plain).items():
        if "_attn." not in name:
            assert torch.equal(tied[name], value), name
            assert torch.equal(source["model"][name], value), name
    assert any(not torch.equal(tied[name], value) for name, value in tensors(plain).items())


# What belongs to a depth.


def test_admin_s_residual_weights_stay_with_their_depth():
    model = build_case(BY_NAME["none"], "post", admin="closed_form")
    checkpoint = checkpoint_of(model, arguments(admin="closed_form"))
    shared = load(tie(checkpoint, CYCLE, "average", align=True), **CYCLE, admin="closed_form")
    for stack in STACKS:
        for ours, theirs in zip(getattr(shared, stack).layers, getattr(model, stack).layers, strict=True):
            assert torch.equal(ours.residual_weight, theirs.residual_weight)
    assert not shared.admin_pending


@pytest.mark.parametrize("pending", [True, False])
def test_admin_is_profiled_after_tying_only_if_it_was_not_before(pending):
    model = build_case(BY_NAME["none"], "post", admin="profile")
    model.admin_pending = pending
    tied = tie(checkpoint_of(model, arguments(admin="profile")), CYCLE)
    assert load(tied, **CYCLE, admin="profile").admin_pending == pending


def test_act_and_the_depth_signal_are_copied(norm):
    changes = {"act": "both", "depth_signal": "learned", "position_per_depth": True}
    model = build_case(BY_NAME["none"], norm, **changes)
    tied = tie(checkpoint_of(model, arguments(norm, **changes)), {"sharing": "none"})
    assert torch.equal(logits(load(tied, norm, **changes)), logits(model))
    shared = load(tie(checkpoint_of(model, arguments(norm, **changes)), CYCLE), norm, **changes, **CYCLE)
    for name, parameter in model.named_parameters():
        if "halting" in name or "depth_signal" in name:
            assert torch.equal(shared.get_parameter(name), parameter), name


def test_a_map_that_a_schedule_changed_is_read_from_the_checkpoint():
    """The options in the checkpoint are those of the start; the maps are the current ones."""
    case = BY_NAME["universal"]
    model = build_case(case, "post")
    for stack in STACKS:
        getattr(model, stack).change_map(StackSharing((0, 0, 0, 1, 2, 3)))
    model.map_changed_by = "a schedule at update 100"
    perturb(model, seed=12)
    tied = tie(checkpoint_of(model, arguments(**case.options)), {"sharing": "sequence", "unique_layers": 2}, "average")
    assert tied["model"]["_extra_state"].keys() == {"stacks", "aliases"}
    shared = load(tied, sharing="sequence", unique_layers=2)
    layers = model.encoder.layers
    mean = (layers[3].fc1.bias + layers[4].fc1.bias + layers[5].fc1.bias) / 3
    torch.testing.assert_close(shared.encoder.layers[5].fc1.bias, mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(shared.encoder.layers[0].fc1.bias, layers[0].fc1.bias, rtol=0, atol=1e-6)


# Other models.


def test_moeut_is_tied_but_not_aligned():
    args = {"sharing": "none", **BANKS}
    model = perturb(build("pre", arch="transformer_moeut", **args))
    checkpoint = checkpoint_of(model, arguments("pre", "transformer_moeut", **args))
    same = load(tie(checkpoint, {"sharing": "none"}), "pre", arch="transformer_moeut", **args)
    assert torch.equal(logits(same), logits(model))
    tied = tie(checkpoint, CYCLE, "average")
    shared = load(tied, "pre", arch="transformer_moeut", **{**args, **CYCLE})
    mean = (model.encoder.layers[1].ffn.up + model.encoder.layers[4].ffn.up) / 2
    torch.testing.assert_close(shared.encoder.layers[4].ffn.up, mean, rtol=0, atol=1e-6)
    with pytest.raises(SharingError, match=r"^--align cannot reorder self_attn"):
        tie(checkpoint, CYCLE, "average", align=True)


LANGUAGE_MODEL = {
    "decoder_input_dim": EMBED,
    "decoder_output_dim": EMBED,
    "tokens_per_sample": 32,
    "share_decoder_input_output_embed": True,
}


def test_fairseq_s_language_model_is_tied():
    args = arguments("pre", "transformer_lm", **LANGUAGE_MODEL)
    model = perturb(build("pre", arch="transformer_lm_sharing", **LANGUAGE_MODEL)).eval()
    state = {name: value for name, value in model.state_dict().items() if name != "_extra_state"}
    # fairseq writes the arguments of its own language model as a dict, without the architecture.
    configuration = {**vars(args), "_name": "transformer_lm"}
    del configuration["arch"]
    tied = tie({"cfg": {"model": configuration}, "model": state}, CYCLE, "average", align=True)
    assert vars(tied["cfg"]["model"])["arch"] == "transformer_lm_sharing"
    shared = load(tied, "pre", arch="transformer_lm_sharing", **LANGUAGE_MODEL, **CYCLE)
    assert shared.sharing == {"decoder": StackSharing((0, 1, 2, 0, 1, 2))}
    assert shared.decoder.layers[4].fc1.weight is shared.decoder.layers[1].fc1.weight
    with pytest.raises(SharingError) as caught:
        tie({"cfg": {"model": {**configuration, "decoder_normalize_before": False}}, "model": state}, CYCLE)
    assert str(caught.value) == (
        "the checkpoint's decoder has post-norm layers (--decoder-normalize-before False), but --arch "
        "transformer_lm_sharing has pre-norm layers; allowed: pre-norm"
    )
    with pytest.raises(SharingError, match=r"^--encoder-layers 4: the model has no encoder; allowed: decoder$"):
        tie({"cfg": {"model": configuration}, "model": state}, {**CYCLE, "encoder_layers": 4})


def test_fairseq_s_roberta_is_tied():
    sizes = {
        "encoder_layers": 4,
        "encoder_embed_dim": EMBED,
        "encoder_ffn_embed_dim": FFN,
        "encoder_attention_heads": 2,
    }
    args = Namespace(arch="roberta", max_positions=64, **sizes)
    task = SimpleNamespace(source_dictionary=dictionary(), max_positions=lambda: 64)
    model = perturb(models.build_model(args, task)).eval()
    tied = tie(checkpoint_of(model, args), {"sharing": "cycle", "unique_layers": 2}, "average", align=True)
    shared = models.build_model(copy.deepcopy(tied["cfg"]["model"]), task)
    shared.load_state_dict(tied["model"])
    assert tied["model"]["_extra_state"] == shared.state_dict()["_extra_state"]
    assert shared.sharing == {"encoder.sentence_encoder": StackSharing((0, 1, 0, 1))}
    same = models.build_model(tie(checkpoint_of(model, args), {"sharing": "none"})["cfg"]["model"], task).eval()
    same.load_state_dict(tie(checkpoint_of(model, args), {"sharing": "none"})["model"])
    tokens = batch()["src_tokens"]
    with torch.no_grad():
        torch.testing.assert_close(same(tokens)[0], model(tokens)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("transformer", "transformer_sharing"),
        ("transformer_iwslt_de_en", "transformer_sharing_iwslt_de_en"),
        ("transformer_vaswani_wmt_en_de_big", "transformer_sharing"),
        ("transformer_sharing_tiny", "transformer_sharing_tiny"),
    ],
)
def test_architectures_of_fairseq_s_transformer_are_tied(arch, expected):
    source = vanilla_checkpoint()
    source["cfg"]["model"].arch = arch
    tied = tie(source, CYCLE)
    assert vars(tied["cfg"]["model"])["arch"] == vars(tied["cfg"]["model"])["_name"] == expected


@pytest.mark.parametrize("arch", ["transformer_align", "fconv_iwslt_de_en", "mine"])
def test_other_architectures_are_refused_by_name(arch):
    source = vanilla_checkpoint()
    source["cfg"]["model"].arch = arch
    with pytest.raises(SharingError) as caught:
        tie(source, CYCLE)
    assert str(caught.value) == (
        f"tie does not support the checkpoint's --arch {arch}; allowed: architectures of fairseq's transformer, "
        "transformer_lm, roberta, and those of this package"
    )


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
