"""Checkpoints: each shared tensor once, whole and small, and what loads where."""

from __future__ import annotations

import io
import logging
import os

import pytest
import torch
from fairseq import checkpoint_utils, utils
from fairseq.models.transformer import TransformerModel
from sharing_cases import BY_NAME, LAYERS
from tiny_models import (
    EMBED,
    FFN,
    VOCABULARY,
    arguments,
    assert_same_translations,
    batch,
    build,
    build_case,
    dictionary,
    make_trainer,
    perturb,
    save,
    train_step,
    translate,
)

from fairseq_sharing import checkpoint
from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import StackSharing
from fairseq_sharing.models.transformer_sharing import TransformerSharingModel

EMBEDDING_ALIASES = {
    "decoder.embed_tokens.weight": "encoder.embed_tokens.weight",
    "decoder.output_projection.weight": "encoder.embed_tokens.weight",
}


def canonical_names(case, vanilla) -> set[str]:
    """The names of a checkpoint, from fairseq's own and the case's map."""
    names = {case.source(name) for name in vanilla.state_dict()}
    return names - EMBEDDING_ALIASES.keys() | {"_extra_state"}


def tensors(state) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if torch.is_tensor(value)}


def to_bytes(obj) -> bytes:
    buffer = io.BytesIO()
    torch.save(obj, buffer)
    return buffer.getvalue()


def assert_equal_models(one, other) -> None:
    """Same names, same values, same ties."""
    names = [dict(model.named_parameters(remove_duplicate=False)) for model in (one, other)]
    assert names[0].keys() == names[1].keys()
    assert all(torch.equal(value, names[1][name]) for name, value in names[0].items())
    assert checkpoint.find_aliases(one) == checkpoint.find_aliases(other)


def assert_tied(case, model) -> None:
    names = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in names.items():
        assert parameter is names[EMBEDDING_ALIASES.get(name, case.source(name))], name


# What is in a state dict.


def test_state_dict_has_each_shared_tensor_once(case, model, vanilla):
    state = model.state_dict()
    assert state.keys() == canonical_names(case, vanilla)
    values = [value for name, value in tensors(state).items() if not name.endswith(("version", "_float_tensor"))]
    assert len({value.data_ptr() for value in values}) == len(values)
    assert sum(value.numel() for value in values) == sum(p.numel() for p in model.parameters())


def test_state_dict_holds_the_map_in_plain_words(case, model):
    stacks = {
        stack: {"layer_map": list(case.layer_map(stack)), "scope": list(model.sharing[stack].scope)}
        for stack in ("encoder", "decoder")
    }
    assert model.state_dict()["_extra_state"] == {"stacks": stacks, "aliases": EMBEDDING_ALIASES}
    assert checkpoint.recorded_sharing(model.state_dict()) == model.sharing


def test_state_dict_of_a_wrapped_model_is_canonical_too(model):
    wrapped = torch.nn.ModuleDict({"module": model})
    assert wrapped.state_dict().keys() == {f"module.{name}" for name in model.state_dict()}


# Save and load.


def test_load_restores_values_ties_and_outputs(case, norm, model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other = build(norm, seed=5, **case.options).eval()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True), strict=True)
    assert_equal_models(other, model)
    assert_tied(case, other)
    with torch.no_grad():
        assert torch.equal(other(**batch())[0], model(**batch())[0])


def test_save_load_save_gives_the_same_bytes(case, norm, model):
    first = to_bytes(model.state_dict())
    other = build(norm, seed=5, **case.options)
    other.load_state_dict(torch.load(io.BytesIO(first), weights_only=True))
    assert list(other.state_dict()) == list(model.state_dict())
    assert to_bytes(other.state_dict()) == first


def test_loading_leaves_the_caller_s_tensors_alone(case, norm, model):
    state = model.state_dict()
    before = {name: value.clone() for name, value in tensors(state).items()}
    other = build(norm, seed=5, **case.options)
    other.load_state_dict(state)
    perturb(other)
    assert all(torch.equal(value, before[name]) for name, value in tensors(state).items())


def test_file_is_as_small_after_half_precision(case, norm, model):
    """fairseq copies every entry of a half-precision state dict by itself."""
    plain = len(to_bytes(model.state_dict()))
    half = utils.move_to_cpu(build_case(case, norm).half().state_dict())
    assert all(value.dtype == torch.float32 for value in tensors(half).values())
    assert abs(len(to_bytes(half)) - plain) <= 0.01 * plain
    stored = sum(value.numel() for value in model.parameters()) * 4
    assert plain < stored + 700 * len(half), "more than the weights and some bytes an entry"


def test_trainer_s_file_holds_each_tensor_and_its_moments_once(case, norm, trained, vanilla):
    saved = torch.load(trained.path, weights_only=True)
    assert saved["model"].keys() == canonical_names(case, vanilla)
    assert len(saved["last_optimizer_state"]["state"]) == len(list(trained.model.parameters()))
    expected = tensors(trained.model.state_dict())
    assert all(torch.equal(value, expected[name]) for name, value in tensors(saved["model"]).items())


def test_fairseq_loads_the_trainer_s_file_strictly(case, norm, trained):
    (loaded,), _cfg = checkpoint_utils.load_model_ensemble([str(trained.path)], strict=True)
    assert type(loaded) is TransformerSharingModel
    assert_equal_models(loaded, trained.model)
    assert_tied(case, loaded)
    assert loaded.sharing == trained.model.sharing


def test_resumed_trainer_goes_on_bitwise(case, norm, trained, data_dir):
    """Weights, ties and optimizer state: the next update is that of the training that was not interrupted."""
    resumed = make_trainer(data_dir, case, norm)
    perturb(resumed.model, seed=8)
    resumed.load_checkpoint(str(trained.path))
    assert resumed.get_num_updates() == 1
    train_step(resumed, seed=4)
    assert_equal_models(resumed.model, trained.next_model)
    assert_tied(case, resumed.model)


# Averaging.


def write(path, model, case, norm, **more):
    """Write a file with what generation needs of a checkpoint."""
    content = {"cfg": {"model": arguments(norm, **case.options)}, "model": model.state_dict(), **more}
    checkpoint.save_atomically(content, path)
    return path


def test_average_is_the_mean_and_keeps_ties_and_size(case, norm, tmp_path):
    models = [perturb(build(norm, seed=seed, **case.options), seed) for seed in (1, 2, 3)]
    paths = [
        write(tmp_path / f"checkpoint{i}.pt", m, case, norm, last_optimizer_state={"state": torch.zeros(10**5)})
        for i, m in enumerate(models)
    ]
    checkpoint.average_checkpoints(paths, tmp_path / "average.pt")
    averaged = torch.load(tmp_path / "average.pt", weights_only=True)
    loaded = build(norm, seed=9, **case.options)
    loaded.load_state_dict(averaged["model"])
    assert_tied(case, loaded)
    expected = zip(*(m.parameters() for m in models), strict=True)
    for parameter, values in zip(loaded.parameters(), expected, strict=True):
        mean = torch.stack([value.double() for value in values]).mean(0)
        torch.testing.assert_close(parameter.double(), mean, rtol=0, atol=1e-7)
    assert list(averaged["model"]) == list(models[0].state_dict())
    assert "last_optimizer_state" not in averaged
    one = write(tmp_path / "one.pt", models[0], case, norm)
    assert abs(os.path.getsize(tmp_path / "average.pt") - os.path.getsize(one)) <= 0.01 * os.path.getsize(one)


def test_average_does_not_depend_on_the_order_of_the_files(tmp_path):
    case = BY_NAME["cycle"]
    models = [perturb(build(seed=seed, **case.options), seed) for seed in range(4)]
    paths = [write(tmp_path / f"{i}.pt", m, case, "post") for i, m in enumerate(models)]
    for name, order in (("a.pt", paths), ("b.pt", paths[::-1])):
        checkpoint.average_checkpoints(order, tmp_path / name)
    one, other = (tensors(torch.load(tmp_path / n, weights_only=True)["model"]) for n in ("a.pt", "b.pt"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_average_of_one_file_is_that_file(trained, tmp_path):
    checkpoint.average_checkpoints([trained.path], tmp_path / "average.pt")
    (loaded,), _cfg = checkpoint_utils.load_model_ensemble([str(tmp_path / "average.pt")])
    assert_equal_models(loaded, trained.model)


def test_average_refuses_other_maps_sizes_and_files(tmp_path):
    cycle, sequence = BY_NAME["cycle"], BY_NAME["sequence"]
    one = write(tmp_path / "one.pt", build(**cycle.options), cycle, "post")
    other = write(tmp_path / "other.pt", build(**sequence.options), sequence, "post")
    wide = write(tmp_path / "wide.pt", build(encoder_ffn_embed_dim=48, **cycle.options), cycle, "post")
    (tmp_path / "broken.pt").write_bytes(one.read_bytes()[:5000])
    output = tmp_path / "average.pt"
    refused = [
        ([one, other], f"{other}: its layer map differs from that of {one}; only equal maps are averaged"),
        (
            [one, wide],
            f"{wide}: its encoder.layers.0.fc1.bias differs in size from that of {one}, or only one has it",
        ),
        ([], "average needs at least one checkpoint, got none"),
        ([tmp_path / "none.pt"], f"{tmp_path / 'none.pt'}: no such checkpoint"),
    ]
    for paths, message in refused:
        with pytest.raises(SharingError) as caught:
            checkpoint.average_checkpoints(paths, output)
        assert str(caught.value) == message
    with pytest.raises(SharingError, match=rf"^{tmp_path}/broken.pt: not a readable checkpoint \(.+\)$"):
        checkpoint.average_checkpoints([one, tmp_path / "broken.pt"], output)
    assert not output.exists()


def test_last_epochs_are_taken_by_number(tmp_path):
    names = ["checkpoint1.pt", "checkpoint2.pt", "checkpoint10.pt", "checkpoint_last.pt", "checkpoint_best.pt"]
    for name in [*names, "checkpoint_3_500.pt", "checkpoint11.pt.tmp"]:
        (tmp_path / name).touch()
    assert [path.name for path in checkpoint.last_epochs(tmp_path, 2)] == ["checkpoint2.pt", "checkpoint10.pt"]
    for count in (0, 4):
        with pytest.raises(SharingError) as caught:
            checkpoint.last_epochs(tmp_path, count)
        assert str(caught.value) == f"{tmp_path}: has 3 epoch checkpoints, got {count} to average"


# Vanilla and materialised files.


def test_vanilla_checkpoint_loads_into_sharing_none(norm):
    vanilla = perturb(build(norm, arch="transformer")).eval()
    ours = build(norm, seed=5).eval()
    ours.load_state_dict(vanilla.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(ours(**batch())[0], vanilla(**batch())[0])


def test_vanilla_trainer_s_file_loads_into_sharing_none(norm, data_dir, tmp_path):
    none = BY_NAME["none"]
    trainer = make_trainer(data_dir, none, norm, arch="transformer")
    train_step(trainer)
    path = save(trainer, tmp_path / "checkpoint1.pt")
    resumed = make_trainer(data_dir, none, norm)
    resumed.load_checkpoint(str(path))
    assert resumed.get_num_updates() == 1
    for t in (trainer, resumed):
        train_step(t, seed=4)
    vanilla = dict(trainer.model.named_parameters())
    for name, parameter in resumed.model.named_parameters():
        assert torch.equal(parameter, vanilla[name]), name


def test_vanilla_weights_that_differ_in_tied_layers_are_refused(case, norm):
    vanilla = perturb(build(norm, arch="transformer"))
    ours = build(norm, **case.options)
    if case.name == "none":
        ours.load_state_dict(vanilla.state_dict())
        return
    before = {name: value.detach().clone() for name, value in ours.named_parameters()}
    with pytest.raises(
        SharingError, match=r"^the checkpoint has different weights for (.+) and (.+), which the model "
    ) as e:
        ours.load_state_dict(vanilla.state_dict())
    assert str(e.value).endswith("shares; allowed: --sharing none for a vanilla model of as many layers")
    assert all(torch.equal(value, before[name]) for name, value in ours.named_parameters()), "nothing was loaded"


def test_vanilla_model_with_copied_weights_loads_into_the_shared_one(case, norm, model, vanilla):
    ours = build(norm, seed=5, **case.options)
    ours.load_state_dict(vanilla.state_dict(), strict=True)
    assert_equal_models(ours, model)
    assert_tied(case, ours)


@pytest.fixture
def materialised(trained, tmp_path):
    path = tmp_path / "materialised.pt"
    checkpoint.save_atomically(checkpoint.materialise(checkpoint.load_checkpoint(trained.path)), path)
    return path


def test_materialised_file_is_fairseq_s_own_transformer_and_translates_the_same(trained, materialised):
    (stock,), cfg = checkpoint_utils.load_model_ensemble([str(materialised)], strict=True)
    assert type(stock) is TransformerModel
    assert cfg.model["_name"] == cfg.model["arch"] == "transformer"
    ours = trained.model
    with torch.no_grad():
        assert torch.equal(stock.eval()(**batch())[0], ours(**batch())[0])
    assert_same_translations(translate([stock]), translate([ours]))


def test_materialised_file_is_of_plain_things_and_no_larger(trained, materialised):
    def check(value, where="file"):
        plain = (dict, list, tuple, str, int, float, bool, type(None), torch.Tensor)
        assert isinstance(value, plain), f"{where}: {type(value)}"
        if isinstance(value, dict):
            for key, item in value.items():
                check(item, f"{where}.{key}")
        elif isinstance(value, list | tuple):
            for item in value:
                check(item, where)

    loaded = torch.load(materialised, weights_only=True)
    check(loaded)
    assert "_extra_state" not in loaded["model"]
    assert not [
        key for key in loaded["cfg"]["model"] if "sharing" in key or "unique_layers" in key or "layer_map" in key
    ]
    sizes = [len(to_bytes({"model": state})) for state in (loaded["model"], trained.model.state_dict())]
    assert sizes[0] - sizes[1] < 300 * (len(loaded["model"]) + 1), "shared storages are written once"


def test_materialised_file_loads_back_into_the_shared_model(case, norm, trained, materialised):
    loaded = torch.load(materialised, weights_only=True)
    ours = build(norm, seed=5, **case.options)
    ours.load_state_dict(loaded["model"], strict=True)
    assert_equal_models(ours, trained.model)
    assert_tied(case, ours)


def test_materialising_changes_nothing_in_what_it_is_given(trained):
    original = checkpoint.load_checkpoint(trained.path)
    keys = list(original["model"])
    checkpoint.materialise(original)
    assert list(original["model"]) == keys
    assert vars(original["cfg"]["model"])["arch"] == "transformer_sharing"
    assert "last_optimizer_state" in original


def test_only_shared_models_are_materialised(data_dir, tmp_path):
    path = save(make_trainer(data_dir, BY_NAME["none"], arch="transformer"), tmp_path / "vanilla.pt")
    with pytest.raises(SharingError) as caught:
        checkpoint.materialise(checkpoint.load_checkpoint(path))
    assert str(caught.value) == "--materialise writes transformer_sharing models, this one is transformer"


# Starting from another model.


@pytest.fixture
def initialising():
    token = checkpoint.initialising.set(True)
    yield
    checkpoint.initialising.reset(token)


def full_layer_maps():
    return [name for name, case in BY_NAME.items() if case.scope == ("layer",) and name != "none"]


@pytest.mark.parametrize("name", full_layer_maps())
@pytest.mark.parametrize("arch", ["transformer", "transformer_sharing"])
def test_finetuning_starts_from_a_vanilla_model_of_m_layers(name, arch, norm, initialising):
    """Vanilla layer i gives parameter set i."""
    case = BY_NAME[name]
    sizes = {f"{stack}_layers": len(set(case.layer_map(stack))) for stack in ("encoder", "decoder")}
    vanilla = perturb(build(norm, arch=arch, **sizes))
    ours = build(norm, seed=5, **case.options)
    ours.load_state_dict(vanilla.state_dict(), strict=True)
    assert_tied(case, ours)
    for stack in ("encoder", "decoder"):
        for depth, label in enumerate(case.layer_map(stack)):
            for parameter_name, parameter in getattr(ours, stack).layers[depth].named_parameters():
                given = getattr(vanilla, stack).layers[label].get_parameter(parameter_name)
                assert torch.equal(parameter, given), f"{stack} layer {depth}"
    assert torch.equal(ours.decoder.embed_tokens.weight, vanilla.decoder.embed_tokens.weight)


def test_finetuning_starts_from_a_vanilla_model_of_n_layers(case, norm, model, vanilla, initialising):
    ours = build(norm, seed=5, **case.options)
    ours.load_state_dict(vanilla.state_dict(), strict=True)
    assert_equal_models(ours, model)


def test_going_on_from_a_vanilla_model_of_m_layers_is_refused():
    vanilla = build(arch="transformer", encoder_layers=3, decoder_layers=3)
    with pytest.raises(SharingError, match=r"^the checkpoint's encoder has the layer map 3 vanilla layers, "):
        build(sharing="cycle", unique_layers=3).load_state_dict(vanilla.state_dict())


def test_trainer_finetunes_and_refuses_by_whether_the_optimizer_is_reset(data_dir, tmp_path):
    """--finetune-from-model resets the optimizer; a resumed training does not."""
    three = make_trainer(data_dir, BY_NAME["none"], arch="transformer", encoder_layers=3, decoder_layers=3)
    train_step(three)
    path = save(three, tmp_path / "vanilla.pt")
    shared = make_trainer(data_dir, BY_NAME["cycle"])
    with pytest.raises(SharingError, match=rf"^{path}: the checkpoint's encoder has the layer map 3 vanilla layers"):
        shared.load_checkpoint(str(path))
    assert not checkpoint.initialising.get()
    shared.load_checkpoint(str(path), reset_optimizer=True, reset_lr_scheduler=True, reset_meters=True)
    assert torch.equal(shared.model.encoder.layers[4].fc1.weight, three.model.encoder.layers[1].fc1.weight)
    assert not checkpoint.initialising.get()
    train_step(shared, seed=4)


# Another map or size.


def test_checkpoint_of_another_map_is_refused(case, norm, model):
    other = build(norm, sharing="custom", layer_map="0,1,2,3,3,3")
    with pytest.raises(SharingError) as caught:
        other.load_state_dict(model.state_dict())
    had = ",".join(map(str, case.encoder))
    scope = ",".join(model.sharing["encoder"].scope)
    assert str(caught.value).startswith(
        f"the checkpoint's encoder has the layer map {had} ({scope}), the options --encoder-layers and --sharing give "
        "0,1,2,3,3,3 (layer); allowed: "
    )


def test_checkpoint_of_another_scope_is_refused():
    state = build(sharing="universal").state_dict()
    with pytest.raises(SharingError, match=r"0,0,0,0,0,0 \(layer\), .* give 0,0,0,0,0,0 \(ffn\); allowed: "):
        build(sharing="universal", sharing_scope="ffn").load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"encoder_ffn_embed_dim": 48}, "--encoder-ffn-embed-dim"),
        ({"decoder_ffn_embed_dim": 48}, "--decoder-ffn-embed-dim"),
        ({"encoder_embed_dim": 24, "decoder_embed_dim": 24}, "--encoder-embed-dim"),
        ({"layernorm_embedding": True}, "--arch and its options"),
        ({"encoder_layers": 4, "encoder_unique_layers": 3}, "--encoder-layers and --sharing"),
    ],
)
def test_checkpoint_of_another_size_is_refused_by_flag_in_one_line(change, flag):
    options = BY_NAME["cycle"].options
    with pytest.raises(SharingError) as caught:
        build(**options, **change).load_state_dict(build(**options).state_dict())
    assert flag in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_unexpected_tensors_are_refused(model, case, norm):
    other = build(norm, seed=5, **case.options)
    for change in (lambda s: s.pop("encoder.layers.0.fc1.weight"), lambda s: s.update({"encoder.more": torch.ones(1)})):
        state = model.state_dict()
        change(state)
        with pytest.raises(SharingError, match=r"^the checkpoint does not fit the model, look at "):
            other.load_state_dict(state, strict=True)


def test_map_that_a_schedule_changed_wins_and_is_logged(case, norm, caplog):
    model = build_case(case, norm).eval()
    for stack, labels in (("encoder", (0, 0, 1, 1, 1, 2)), ("decoder", (0, 1, 2, 3, 4, 5))):
        getattr(model, stack).change_map(StackSharing(labels))
    model.map_changed_by = "a schedule at update 100"
    perturb(model, seed=12)
    other = build(norm, seed=5, **case.options).eval()
    with caplog.at_level(logging.INFO, logger="fairseq_sharing"):
        other.load_state_dict(torch.load(io.BytesIO(to_bytes(model.state_dict())), weights_only=True))
    assert other.sharing == model.sharing
    assert other.map_changed_by == "a schedule at update 100"
    assert_equal_models(other, model)
    told = [record.getMessage() for record in caplog.records if record.name.startswith("fairseq_sharing")]
    assert "encoder map of the checkpoint: 0,0,1,1,1,2 (a schedule at update 100)" in told
    assert any(line.startswith("decoder map of the checkpoint: 0,1,2,3,4,5") for line in told) == (case.name != "none")
    with torch.no_grad():
        assert torch.equal(other(**batch())[0], model(**batch())[0])
    assert other.state_dict()["_extra_state"] == model.state_dict()["_extra_state"]


def test_map_that_nothing_changed_does_not_win():
    model, other = build(sharing="cycle", unique_layers=2), build(sharing="cycle", unique_layers=3)
    assert "map_changed_by" not in model.state_dict()["_extra_state"]
    with pytest.raises(SharingError, match="0,1,0,1,0,1"):
        other.load_state_dict(model.state_dict())


# Reading files.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"not a readable checkpoint \(.+\)"),
        (b"\x00" * 400, r"not a readable checkpoint \(.+\)"),
        (b"hello, this is no checkpoint\n" * 20, r"not a readable checkpoint \(.+\)"),
        ([1, 2, 3], "not a fairseq checkpoint, there is no model in it"),
        ({"epoch": 3}, "not a fairseq checkpoint, there is no model in it"),
        ({"model": torch.ones(2)}, "not a fairseq checkpoint, there is no model in it"),
    ],
)
def test_other_files_are_refused_in_one_line(content, message, tmp_path):
    path = tmp_path / "file.pt"
    path.write_bytes(content if isinstance(content, bytes) else to_bytes(content))
    with pytest.raises(SharingError, match=f"^{path}: {message}$"):
        checkpoint.load_checkpoint(path)


def test_file_that_would_run_code_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    path = tmp_path / "file.pt"
    torch.save({"model": {"weight": Harmful()}}, path)
    with pytest.raises(SharingError, match="not a readable checkpoint"):
        checkpoint.load_checkpoint(path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_files_of_many_kinds_are_refused(tmp_path):
    """Whatever torch's reader stumbles on, it is one kind of error, or the file is still whole."""
    path = tmp_path / "file.pt"
    whole = to_bytes({"model": build(encoder_layers=1, decoder_layers=1).state_dict()})
    generator = torch.Generator().manual_seed(0)

    def number(below: int) -> int:
        return int(torch.randint(below, (), generator=generator))

    refused = 0
    for _ in range(60):
        cut, flipped, noise = whole[: number(len(whole))], bytearray(whole), bytes(number(256) for _ in range(60))
        for _ in range(40):
            flipped[number(3000)] = number(256)
        for content in (cut, bytes(flipped), noise):
            path.write_bytes(content)
            told = None
            try:
                checkpoint.load_checkpoint(path)
            except SharingError as error:
                told = str(error)
            refused += told is not None
            assert told is None or "\n" not in told
    assert refused > 100


# Describing files.


def test_description_of_a_checkpoint(case, norm, trained):
    told = checkpoint.describe_checkpoint(trained.path)
    attention, ffn = 4 * EMBED * (EMBED + 1), 2 * EMBED * FFN + FFN + EMBED
    vanilla_layers = LAYERS * (attention + ffn + 4 * EMBED) + LAYERS * (2 * attention + ffn + 6 * EMBED)
    effective = VOCABULARY * EMBED + vanilla_layers + (4 * EMBED if norm == "pre" else 0)
    unique = sum(parameter.numel() for parameter in trained.model.parameters())
    assert told["parameters"] == {"unique": unique, "effective": effective}
    assert told["layer_map"] == {"encoder": list(case.encoder), "decoder": list(case.decoder)}
    assert told["layers"] == {"encoder": LAYERS, "decoder": LAYERS}
    assert told["unique_layers"] == {"encoder": len(set(case.encoder)), "decoder": len(set(case.decoder))}
    assert told["scope"] == {"encoder": sorted_scope(case), "decoder": sorted_scope(case)}
    strategy = case.options.get("sharing", "none")
    assert told["sharing"] == {"encoder": strategy, "decoder": case.options.get("decoder_sharing", strategy)}
    assert told["arch"] == "transformer_sharing"
    assert told["updates"] == 1


def sorted_scope(case) -> list[str]:
    order = ["layer", "self_attn", "encoder_attn", "ffn", "layer_norm"]
    return sorted(case.scope, key=order.index)


# From Python, and several models at once.


def test_from_pretrained_gives_the_trained_model(case, norm, trained, data_dir):
    hub = TransformerSharingModel.from_pretrained(str(trained.path.parent), trained.path.name, str(data_dir))
    assert_equal_models(hub.models[0], trained.model)
    assert_tied(case, hub.models[0])
    words = hub.translate("w3 w4 w5", beam=2, max_len_b=9).split()
    assert words
    assert set(words) <= set(dictionary().symbols)


def test_models_of_different_maps_make_an_ensemble(data_dir, tmp_path, norm):
    paths = []
    for name in ("cycle_rev", "sandwich", "none"):
        paths.append(str(save(make_trainer(data_dir, BY_NAME[name], norm), tmp_path / f"{name}.pt")))
    vanilla = make_trainer(data_dir, BY_NAME["none"], norm, arch="transformer")
    paths.append(str(save(vanilla, tmp_path / "vanilla.pt")))
    models, _cfg = checkpoint_utils.load_model_ensemble(paths)
    maps = [[s.layer_map for s in m.sharing.values()] for m in models[:3]]
    assert maps == [[BY_NAME[name].encoder] * 2 for name in ("cycle_rev", "sandwich", "none")]
    together = translate(models)
    # The probability of the first word is the mean over the models.
    with torch.no_grad():
        inputs = batch()
        inputs["prev_output_tokens"] = torch.full((3, 1), 2)
        probabilities = [m.eval().get_normalized_probs(m(**inputs), log_probs=False)[:, 0] for m in models]
    mean = torch.stack(probabilities).mean(0).log()
    for sentence, hypotheses in enumerate(together):
        best = hypotheses[0]
        torch.testing.assert_close(best["positional_scores"][0], mean[sentence, best["tokens"][0]], rtol=0, atol=1e-5)
