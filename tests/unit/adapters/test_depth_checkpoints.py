"""Depth parameters in checkpoints: saving, loading, resuming, averaging, untying and exporting."""

from __future__ import annotations

import copy

import pytest
import torch
from depth_models import ALL, CYCLE, KINDS
from fairseq import checkpoint_utils
from sharing_cases import BY_NAME, LAYERS
from tied_models import logits
from tiny_models import (
    arguments,
    assert_equal_models,
    assert_same_translations,
    build,
    make_trainer,
    perturb,
    save,
    tensors,
    train_step,
    translate,
)

from fairseq_sharing.adapters.effective import merge_state
from fairseq_sharing.checkpoints.averaging import average_checkpoints
from fairseq_sharing.checkpoints.files import load_checkpoint, save_atomically
from fairseq_sharing.checkpoints.materialize import materialize
from fairseq_sharing.checkpoints.recorded_state import recorded_extra, refuse_incomplete
from fairseq_sharing.checkpoints.sharing_state import initializing
from fairseq_sharing.checkpoints.summary import describe_checkpoint
from fairseq_sharing.checkpoints.tie import tie
from fairseq_sharing.decoding.ctranslate2_export import export
from fairseq_sharing.decoding.model_files import ModelFiles
from fairseq_sharing.errors import SharingError
from fairseq_sharing.schedules.at_rest import untie

CASE = BY_NAME["cycle"]


@pytest.fixture(scope="module")
def saved(data_dir, tmp_path_factory):
    """Return a function that trains a model for two updates and writes its checkpoint; each one is made once."""
    made = {}

    def write(norm: str = "post", **options):
        key = (norm, *sorted(options.items()))
        if key not in made:
            trainer = make_trainer(data_dir, CASE, norm, **options)
            for seed in (3, 4):
                train_step(trainer, seed)
            path = save(trainer, tmp_path_factory.mktemp("depth") / "checkpoint1.pt")
            made[key] = (path, copy.deepcopy(trainer.model).eval())
        return made[key]

    return write


def start_from(model, state):
    token = initializing.set(True)
    try:
        model.load_state_dict(state)
    finally:
        initializing.reset(token)
    return model


# Saving, loading and resuming.


def test_a_checkpoint_contains_each_shared_tensor_once_and_each_adapter(saved):
    path, model = saved(**ALL)
    state = load_checkpoint(path)["model"]
    assert state["_extra_state"]["depth"] == {
        "lora": {"rank": 4, "of": ["q", "k", "v", "out", "fc1", "fc2"]},
        "scale": True,
        "bias": True,
        "norm": True,
    }
    assert "encoder.layers.4.fc1.weight" not in state
    assert {f"encoder.layers.{d}.depth.lora.fc1.a" for d in range(LAYERS)} <= state.keys()
    loaded = build(seed=5, **CYCLE, **ALL)
    loaded.load_state_dict(state)
    assert_equal_models(loaded, model)


@pytest.mark.parametrize("kind", KINDS)
def test_resuming_is_exact(kind, data_dir, tmp_path):
    options = KINDS[kind]
    trainer = make_trainer(data_dir, CASE, **options)
    train_step(trainer, seed=3)
    path = save(trainer, tmp_path / "checkpoint1.pt")
    train_step(trainer, seed=4)
    resumed = make_trainer(data_dir, CASE, **options)
    resumed.load_checkpoint(str(path))
    train_step(resumed, seed=4)
    assert_equal_models(resumed.model, trainer.model)
    states = [t.optimizer.state_dict()["state"] for t in (resumed, trainer)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][n]["exp_avg"], states[1][n]["exp_avg"]) for n in states[0])


@pytest.mark.parametrize(
    ("has", "wants", "expected"),
    [
        ({}, {"depth_lora": 4}, "no depth parameters, but the options give --depth-lora 4; allowed: --finetune-from"),
        ({"depth_lora": 2}, {"depth_lora": 4}, "--depth-lora 2, but the options give --depth-lora 4; allowed: the opt"),
        ({"depth_lora": 2}, {}, "--depth-lora 2, but the options give no depth parameters; allowed: .* untie --merge"),
        (
            {"depth_lora": 2, "depth_lora_of": "q,v"},
            {"depth_lora": 2, "depth_scale": True},
            "--depth-lora 2 --depth-lora-of q,v, but the options give --depth-lora 2 --depth-scale; allowed: the opt",
        ),
    ],
)
def test_other_kinds_are_refused_in_one_line(has, wants, expected):
    state = build(**CYCLE, **has).state_dict()
    with pytest.raises(SharingError, match=rf"^the checkpoint has {expected}") as caught:
        build(**CYCLE, **wants).load_state_dict(copy.deepcopy(state))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("has", [{"depth_lora": 2}, {"depth_lora": 2, "depth_scale": True}])
def test_another_rank_is_refused_even_to_start_from(has):
    with pytest.raises(SharingError, match=r"has --depth-lora 2.*, but the options give --depth-lora 4"):
        start_from(build(**CYCLE, depth_lora=4), build(**CYCLE, **has).state_dict())


@pytest.mark.parametrize("has", [{}, {"depth_lora": 4}])
def test_a_model_starts_from_one_without_its_depth_parameters(norm, has):
    source = perturb(build(norm, **CYCLE, **has)).eval()
    model = start_from(build(norm, seed=5, **CYCLE, **ALL), source.state_dict()).eval()
    assert torch.equal(logits(model), logits(source))
    layers = model.encoder.layers
    assert layers[4].fc1.bias is not layers[1].fc1.bias
    assert torch.equal(layers[4].fc1.bias, source.encoder.layers[1].fc1.bias)


def test_a_vanilla_checkpoint_starts_a_model_with_adapters_and_no_sharing(norm):
    """Plain adapters: --sharing none."""
    source = perturb(build(norm, arch="transformer")).eval()
    options = {"sharing": "none", **ALL}
    model = start_from(build(norm, seed=5, **options), source.state_dict())
    assert torch.equal(logits(model), logits(source))


def test_a_tied_file_is_loaded_by_the_trainer(data_dir, tmp_path):
    vanilla = make_trainer(data_dir, BY_NAME["none"], arch="transformer")
    train_step(vanilla)
    path = save(vanilla, tmp_path / "checkpoint1.pt")
    tied = tie(load_checkpoint(path), {**CYCLE, "depth_lora": 3})
    save_atomically(tied, tmp_path / "tied.pt")
    finetune = {"reset_optimizer": True, "reset_lr_scheduler": True, "reset_meters": True}
    trainer = make_trainer(data_dir, CASE, depth_lora=3)
    trainer.load_checkpoint(str(tmp_path / "tied.pt"), **finetune)
    value = tied["model"]["decoder.layers.5.depth.lora.fc2.b"]
    assert torch.equal(trainer.model.decoder.layers[5].depth.lora.fc2.b, value)
    train_step(trainer)
    assert not torch.equal(trainer.model.decoder.layers[5].depth.lora.fc2.b, value)


@pytest.mark.parametrize(
    "entry",
    [
        {"lora": {"rank": 0, "of": ["q"]}},
        {"lora": {"rank": True, "of": ["q"]}},
        {"lora": {"rank": 2, "of": ["w"]}},
        {"lora": {"rank": 2}},
        {"scale": False},
        {"prefix": 3},
        [],
    ],
)
def test_a_damaged_entry_is_refused(entry):
    state = build(**CYCLE, depth_lora=2).state_dict()
    state["_extra_state"]["depth"] = entry
    with pytest.raises(SharingError, match=r"^the checkpoint's _extra_state.depth: got .*; allowed: lora with rank"):
        recorded_extra(state)


def test_a_missing_adapter_is_not_taken_from_another_depth():
    state = build(**CYCLE, depth_lora=2).state_dict()
    refuse_incomplete(state)
    del state["encoder.layers.4.depth.lora.fc1.a"]
    with pytest.raises(SharingError, match=r"lacks the tensor encoder\.layers\.4\.depth\.lora\.fc1\.a"):
        refuse_incomplete(state)


# Averaging.


def test_factors_are_averaged_as_they_are(saved, data_dir, tmp_path):
    trainer = make_trainer(data_dir, CASE, **ALL)
    paths = []
    for seed in (3, 4):
        train_step(trainer, seed)
        paths.append(save(trainer, tmp_path / f"checkpoint{seed}.pt"))
    average_checkpoints(paths, tmp_path / "average.pt")
    found = load_checkpoint(tmp_path / "average.pt")["model"]
    one, other = (tensors(load_checkpoint(path)["model"]) for path in paths)
    for name, value in tensors(found).items():
        torch.testing.assert_close(value, (one[name] + other[name]) / 2, rtol=0, atol=1e-6)
    assert found["_extra_state"]["depth"]["lora"]["rank"] == 4
    (model,), _ = checkpoint_utils.load_model_ensemble([str(tmp_path / "average.pt")])
    assert torch.equal(model.encoder.layers[4].depth.lora.fc1.a, found["encoder.layers.4.depth.lora.fc1.a"])


# Untying.


def _load_untied(untied, norm="post", **options):
    model = build(norm, seed=8, sharing="none", **options).eval()
    model.load_state_dict(copy.deepcopy(untied["model"]))
    return model


def test_untying_keeps_the_depth_parameters(saved, norm):
    path, model = saved(norm, **ALL)
    untied = untie(load_checkpoint(path))
    separate = _load_untied(untied, norm, **ALL)
    assert torch.equal(logits(separate), logits(model))
    layer = model.encoder.layers[4]
    assert torch.equal(separate.encoder.layers[4].fc1.weight, layer.fc1.weight)
    assert torch.equal(separate.encoder.layers[4].depth.lora.fc1.b, layer.depth.lora.fc1.b)
    names = [name for name, _ in separate.named_parameters()]
    group = untied["last_optimizer_state"]["param_groups"][0]["params"]
    assert len(names) == len(group) == len(untied["last_optimizer_state"]["state"])


def test_untying_with_merging_gives_a_vanilla_model(saved, norm):
    path, model = saved(norm, **ALL)
    checkpoint = load_checkpoint(path)
    untied = untie(checkpoint, merge=True)
    separate = _load_untied(untied, norm)
    torch.testing.assert_close(logits(separate), logits(model), rtol=0, atol=1e-5)
    assert not [name for name in untied["model"] if ".depth." in name]
    assert vars(untied["cfg"]["model"])["depth_lora"] is None
    # Each matrix keeps the moments of the one that it was made from; those of the adapters are gone.
    places = {name: number for number, (name, _) in enumerate(model.named_parameters())}
    names = [name for name, _ in separate.named_parameters()]
    old, new = checkpoint["last_optimizer_state"]["state"], untied["last_optimizer_state"]["state"]
    assert new.keys() == set(range(len(names)))
    for ours, theirs in (
        ("encoder.layers.4.fc2.weight", "encoder.layers.1.fc2.weight"),
        ("decoder.layers.5.fc2.bias",) * 2,
    ):
        assert torch.equal(new[names.index(ours)]["exp_avg"], old[places[theirs]]["exp_avg"])


def test_adapters_without_sharing_can_be_merged():
    model = perturb(build(sharing="none", depth_lora=3)).eval()
    checkpoint = {
        "cfg": {"model": arguments(sharing="none", depth_lora=3)},
        "model": model.state_dict(),
        "extra_state": {},
        "last_optimizer_state": torch.optim.Adam(model.parameters()).state_dict(),
    }
    with pytest.raises(SharingError, match="has no shared layers"):
        untie(checkpoint)
    torch.testing.assert_close(logits(_load_untied(untie(checkpoint, merge=True))), logits(model), rtol=0, atol=1e-5)


# Exporting.


@pytest.mark.parametrize("kind", KINDS)
def test_a_materialized_model_and_ctranslate2_compute_the_same(kind, norm, saved, data_dir, tmp_path):
    path, model = saved(norm, **KINDS[kind])
    stock = materialize(load_checkpoint(path))
    assert not [name for name in stock["model"] if ".depth." in name]
    assert not [name for name in stock["cfg"]["model"] if name.startswith("depth_")]
    plain = build(norm, arch="transformer").eval()
    plain.load_state_dict(stock["model"])
    torch.testing.assert_close(logits(plain), logits(model), rtol=0, atol=1e-5)
    assert_same_translations(translate([plain]), translate([model]))
    languages = {"source": "en", "target": "de"}
    files = ModelFiles(str(path), checkpoints=(path,), dictionaries=data_dir, languages=languages)
    exported = export(files, tmp_path / "out")
    assert exported.difference.largest < 1e-4
    # Tensors of 3 borrowing layers per stack: 6 matrices in the encoder and 10 in the decoder; factors also change the
    # biases of k and v.
    lora, scale = 3 * (6 + 10), 3 * (5 + 9)
    expected = {"lora": lora, "lora_of": 3 * (2 + 3), "scale": scale, "all": lora}
    assert exported.depth_tensors == expected.get(kind, 0)


def test_admin_and_adapters_are_folded_together(saved, data_dir, tmp_path):
    path, _ = saved(admin="closed_form", depth_lora=4, depth_scale=True)
    languages = {"source": "en", "target": "de"}
    files = ModelFiles(str(path), checkpoints=(path,), dictionaries=data_dir, languages=languages)
    assert export(files, tmp_path / "out").difference.largest < 1e-4


def test_the_summary_counts_adapters_once(saved):
    path, model = saved(depth_lora=4)
    counts = describe_checkpoint(path)["parameters"]
    assert counts["unique"] == sum(parameter.numel() for parameter in model.parameters())
    plain = build(arch="transformer")
    assert counts["effective"] == sum(parameter.numel() for parameter in plain.parameters())


def test_half_precision_weights_are_merged_in_their_type():
    state = {name: value.half() for name, value in tensors(build(sharing="none", **ALL).state_dict()).items()}
    state["encoder.layers.0.depth.lora.fc1.b"] += 1
    merged = merge_state(state)
    assert merged["encoder.layers.0.fc1.weight"].dtype == torch.float16
    assert not torch.equal(merged["encoder.layers.0.fc1.weight"], state["encoder.layers.0.fc1.weight"])
