"""Checkpoints of models with maps per component and sets across stacks, and every command that reads or writes them."""

from __future__ import annotations

import copy

import pytest
import torch
from component_cases import BY_NAME, CASES, source
from tied_models import load, logits, vanilla_checkpoint
from tiny_models import (
    EMBEDDING_ALIASES,
    assert_equal_models,
    build,
    make_trainer,
    perturb,
    save,
    tensors,
    to_bytes,
    train_step,
)

from fairseq_sharing.checkpoints.averaging import average_checkpoints
from fairseq_sharing.checkpoints.files import load_checkpoint, save_atomically
from fairseq_sharing.checkpoints.materialize import materialize
from fairseq_sharing.checkpoints.recorded_state import recorded_sharing, refuse_incomplete
from fairseq_sharing.checkpoints.sharing_state import initializing
from fairseq_sharing.checkpoints.summary import describe_checkpoint
from fairseq_sharing.checkpoints.tie import tie
from fairseq_sharing.errors import SharingError
from fairseq_sharing.schedules.at_rest import untie

TIED = BY_NAME["tied"].options


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request):
    return request.param


@pytest.fixture
def trained(case, data_dir, tmp_path):
    """A trainer after two updates, and its checkpoint."""
    trainer = make_trainer(data_dir, case)
    for seed in (3, 4):
        train_step(trainer, seed)
    return trainer, save(trainer, tmp_path / "checkpoint1.pt")


def test_each_tensor_is_stored_once_with_the_maps(case, trained):
    trainer, path = trained
    model = load_checkpoint(path)["model"]
    refuse_incomplete(model)
    assert model["_extra_state"]["version"] == 2
    assert recorded_sharing(model) == trainer.model.sharing
    inside = {name: value for name, value in tensors(model).items() if ".layers." in name}
    assert sum(value.numel() for value in inside.values()) == case.parameters
    assert {source(case, name) for name in inside} == set(inside)


def test_training_resumes_with_the_same_bits(case, trained, data_dir):
    trainer, path = trained
    resumed = make_trainer(data_dir, case)
    resumed.load_checkpoint(str(path))
    assert_equal_models(resumed.model, trainer.model)
    for one in (trainer, resumed):
        train_step(one, 5)
    assert_equal_models(resumed.model, trainer.model)
    assert to_bytes(tensors(resumed.model.state_dict())) == to_bytes(tensors(trainer.model.state_dict()))


def test_the_mean_of_checkpoints_keeps_the_ties(case, trained, tmp_path):
    trainer, path = trained
    before = copy.deepcopy(tensors(trainer.model.state_dict()))
    train_step(trainer, 5)
    average_checkpoints([path, save(trainer, tmp_path / "checkpoint2.pt")], tmp_path / "mean.pt")
    mean = load_checkpoint(tmp_path / "mean.pt")["model"]
    after = tensors(trainer.model.state_dict())
    assert tensors(mean).keys() == after.keys()
    for name, value in after.items():
        torch.testing.assert_close(mean[name], (before[name] + value) / 2, rtol=0, atol=1e-6)
    model = build("post", seed=5, **case.options)
    model.load_state_dict(mean)
    assert model.sharing == trainer.model.sharing


def test_a_materialized_checkpoint_is_stock_fairseqs(case, trained):
    trainer, path = trained
    stock = materialize(load_checkpoint(path))
    assert not any("sharing" in name or name == "preset" for name in stock["cfg"]["model"])
    model = build("post", arch="transformer", seed=5)
    model.load_state_dict(stock["model"])
    torch.testing.assert_close(logits(model), logits(trainer.model), rtol=0, atol=1e-6)
    refuse_incomplete({**stock["model"], "_extra_state": trainer.model.state_dict()["_extra_state"]})


def test_untying_gives_each_layer_its_parameters_and_its_optimizer_state(case, trained, data_dir, tmp_path):
    trainer, path = trained
    untied = untie(load_checkpoint(path))
    save_atomically(untied, tmp_path / "untied.pt")
    resumed = make_trainer(data_dir, type(case)("none", {"sharing": "none"}, {}, 0))
    resumed.load_checkpoint(str(tmp_path / "untied.pt"))
    ours = dict(trainer.model.named_parameters(remove_duplicate=False))
    states = [one.optimizer.optimizer.state for one in (trainer, resumed)]
    for name, parameter in resumed.model.named_parameters():
        tied = ours[EMBEDDING_ALIASES.get(name, source(case, name))]
        assert torch.equal(parameter, tied), name
        for moment in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(states[1][parameter][moment], states[0][tied][moment]), name


def test_a_checkpoint_is_summarized(case, trained):
    trainer, path = trained
    summary = describe_checkpoint(path)
    assert summary["sharing"] == {"encoder": "components", "decoder": "components"}
    assert summary["components"]["encoder"]["ffn"] == list(trainer.model.sharing["encoder"].of_component("ffn").labels)
    vanilla = sum(p.numel() for p in build("post", arch="transformer").parameters())
    outside = summary["parameters"]["unique"] - case.parameters
    assert summary["parameters"] == {"unique": outside + case.parameters, "effective": vanilla}


def test_a_checkpoint_of_another_tied_model_is_a_source_for_tie(case, trained):
    """The layers of any source are effective layers: sets across stacks are filled in first."""
    trainer, path = trained
    tied = tie(load_checkpoint(path), {"sharing": "none"}, "first")
    torch.testing.assert_close(logits(load(tied, sharing="none")), logits(trainer.model), rtol=0, atol=1e-6)


@pytest.mark.parametrize("align", [False, True])
def test_tie_fills_the_sets_of_each_component_by_its_own_map(align):
    checkpoint = vanilla_checkpoint()
    given = {"component_sharing": "ffn=universal;self_attn=cycle:2", "encoder_component_sharing": "layer_norm=sandwich"}
    tied = tie(checkpoint, given, "average", align)
    model, state = load(tied, **given), checkpoint["model"]
    norms = [state[f"encoder.layers.{i}.final_layer_norm.weight"] for i in range(1, 5)]
    torch.testing.assert_close(model.encoder.layers[2].final_layer_norm.weight, torch.stack(norms).mean(0))
    assert torch.equal(
        model.decoder.layers[2].encoder_attn.k_proj.bias, state["decoder.layers.2.encoder_attn.k_proj.bias"]
    )
    if not align:
        weights = [state[f"encoder.layers.{i}.fc1.weight"] for i in range(6)]
        torch.testing.assert_close(model.encoder.layers[5].fc1.weight, torch.stack(weights).mean(0))
        odd = [state[f"decoder.layers.{i}.self_attn.q_proj.weight"] for i in (1, 3, 5)]
        torch.testing.assert_close(model.decoder.layers[5].self_attn.q_proj.weight, torch.stack(odd).mean(0))


@pytest.mark.parametrize(
    ("saved", "wanted", "message"),
    [
        (
            {"component_sharing": "ffn=universal;self_attn=cycle:2"},
            {"component_sharing": "ffn=sequence:2;self_attn=cycle:2"},
            "the checkpoint's encoder has the map ffn 0,0,0,0,0,0, but the options --encoder-layers and "
            "--component-sharing, --cross-stack-sharing give ffn 0,0,0,1,1,1; allowed: the options of its training",
        ),
        (
            TIED,
            {"sharing": "none"},
            "the checkpoint's encoder has the map self_attn 0,1,2,3,4,5 (across stacks), but the options "
            "--encoder-layers and --sharing give self_attn 0,1,2,3,4,5; allowed: ",
        ),
        (
            {"sharing": "universal", "sharing_scope": "ffn"},
            {"cross_stack_sharing": "ffn=universal"},
            "has the map ffn 0,0,0,0,0,0, but the options --encoder-layers and --component-sharing, "
            "--cross-stack-sharing give ffn 0,0,0,0,0,0 (across stacks); allowed: ",
        ),
        (
            {"sharing": "universal"},
            {"sharing": "none"},
            "the checkpoint's encoder has the layer map 0,0,0,0,0,0 (layer), but the options --encoder-layers and "
            "--sharing give 0,1,2,3,4,5 (layer); allowed: ",
        ),
    ],
)
def test_another_map_is_refused_with_the_component_and_both_maps(saved, wanted, message):
    state = build("post", **saved).state_dict()
    with pytest.raises(SharingError) as error:
        build("post", seed=2, **wanted).load_state_dict(state)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_vanilla_checkpoint_initializes_only_a_model_whose_sets_agree():
    state = build("post", arch="transformer").state_dict()
    model = build("post", seed=2, **TIED)
    token = initializing.set(True)
    try:
        with pytest.raises(SharingError, match="the checkpoint has different weights for encoder"):
            model.load_state_dict(dict(state))
    finally:
        initializing.reset(token)


def test_only_models_that_need_it_write_version_2():
    plain = perturb(build("post", sharing="cycle", unique_layers=3, sharing_scope="ffn")).state_dict()["_extra_state"]
    assert plain["stacks"] == {
        stack: {"layer_map": [0, 1, 2, 0, 1, 2], "scope": ["ffn"]} for stack in ("encoder", "decoder")
    }
    assert plain.keys() == {"stacks", "aliases"}
    mixed = build("post", sharing="cycle", unique_layers=3, encoder_component_sharing="ffn=universal")
    extra = mixed.state_dict()["_extra_state"]
    assert extra["version"] == 2
    assert extra["stacks"]["decoder"] == {"maps": {"layer": [0, 1, 2, 0, 1, 2]}, "spaces": {}}
    assert extra["stacks"]["encoder"]["maps"]["ffn"] == [0] * 6
    assert recorded_sharing(mixed.state_dict()) == mixed.sharing


def changed(change):
    state = dict(build("post", **TIED).state_dict())
    state["_extra_state"] = copy.deepcopy(state["_extra_state"])
    change(state, state["_extra_state"]["stacks"]["decoder"])
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, d: s["_extra_state"].update(version=3), "_extra_state.version: got 3; allowed: 1 or 2"),
        (lambda s, d: s["_extra_state"].update(version=True), "_extra_state.version: got True; allowed: 1 or 2"),
        (lambda s, d: s["_extra_state"].pop("version"), "stacks.encoder.layer_map: got None; allowed: labels"),
        (lambda s, d: d.update(maps=[0]), "stacks.decoder.maps: got [0]; allowed: a dict"),
        (lambda s, d: d.update(maps={}), "stacks.decoder.maps: got []; allowed: the map of layer, or those of"),
        (lambda s, d: d.pop("maps"), "stacks.decoder.maps: got []; allowed: the map of layer, or those of"),
        (lambda s, d: d["maps"].update(mlp=[0] * 6), "decoder.maps: got ['self_attn', 'encoder_attn', 'ffn', "),
        (lambda s, d: d["maps"].update(layer=[0] * 6), "'layer_norm', 'layer']; allowed: the map of layer, or"),
        (
            lambda s, d: d["maps"].update(encoder_attn=[1] * 6),
            "maps.encoder_attn: got [1, 1, 1, 1, 1, 1]; allowed: labels",
        ),
        (lambda s, d: d["maps"].update(ffn=[0] * 5), "decoder.maps: got 'maps of 5, 6 layers'; allowed: maps of equal"),
        (
            lambda s, d: d["maps"].update(ffn=[-1] * 6),
            "maps.ffn: got [-1, -1, -1, -1, -1, -1]; allowed: labels of sets",
        ),
        (lambda s, d: d.update(spaces=0), "stacks.decoder.spaces: got 0; allowed: a dict"),
        (lambda s, d: d["spaces"].update(ffn="x"), "decoder.spaces.ffn: got 'x'; allowed: attention, self_attn"),
        (lambda s, d: d["spaces"].update(mlp="ffn"), "decoder.spaces.mlp: got 'ffn'; allowed: "),
        (
            lambda s, d: s.update({"decoder.layers.2.fc1.bias": s["encoder.layers.2.fc1.bias"].clone()}),
            "has a tensor decoder.layers.2.fc1.bias that its layer map takes from encoder.layers.2.fc1.bias; allowed",
        ),
        (lambda s, d: s.pop("encoder.layers.4.fc1.bias"), "lacks the tensor encoder.layers.4.fc1.bias"),
        (
            lambda s, d: s.pop("decoder.layers.4.encoder_attn.k_proj.bias"),
            "lacks the tensor decoder.layers.4.encoder_attn",
        ),
        (lambda s, d: d["maps"].update(ffn=[0, 1, 2, 3, 4, 6]), "lacks the tensor decoder.layers.5.fc1.weight"),
    ],
)
def test_malformed_records_are_refused_in_one_line(change, message):
    with pytest.raises(SharingError) as error:
        refuse_incomplete(changed(change))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
