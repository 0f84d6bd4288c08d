"""Sharing recorded in checkpoints: every command rejects malformed and damaged entries in one line."""

from __future__ import annotations

import zipfile

import pytest
import torch
from fairseq import checkpoint_utils
from sharing_cases import BY_NAME
from tiny_models import build, make_trainer, save, train_step

from fairseq_sharing.checkpoints.choose import newest_readable
from fairseq_sharing.checkpoints.files import load_checkpoint, save_atomically
from fairseq_sharing.checkpoints.integrity import refuse_damaged
from fairseq_sharing.checkpoints.materialize import materialize
from fairseq_sharing.commands import main
from fairseq_sharing.errors import SharingError


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    """Make a checkpoint of Cycle, M = 3, N = 6."""
    trainer = make_trainer(data_dir, BY_NAME["cycle"])
    train_step(trainer)
    return save(trainer, tmp_path_factory.mktemp("trained") / "checkpoint1.pt")


def encoder(**values):
    return lambda state: state["_extra_state"]["stacks"]["encoder"].update(values)


def extra(**values):
    return lambda state: state["_extra_state"].update(values)


def without(name):
    return lambda state: state["_extra_state"]["stacks"]["encoder"].pop(name)


def entry(value):
    return lambda state: state.update(_extra_state=value)


LABELS = "labels from 0 in the order of first use, such as [0, 1, 0]"
MALFORMED = {
    "entry is text": (entry("cycle"), "_extra_state: got 'cycle'; allowed: a dict"),
    "entry is a list": (entry([1]), "_extra_state: got [1]; allowed: a dict"),
    "stacks is text": (extra(stacks="encoder"), "_extra_state.stacks: got 'encoder'; allowed: a dict"),
    "stack is text": (extra(stacks={"encoder": "0,1"}), "stacks.encoder: got '0,1'; allowed: a dict"),
    "stack of a bad name": (extra(stacks={"(": {}}), "stacks: got '('; allowed: names such as encoder"),
    "stack without tensors": (
        extra(stacks={"middle": {"layer_map": [0, 0], "scope": ["layer"]}}),
        "a layer map of middle but no tensor middle.layers.0.*",
    ),
    "map is text": (encoder(layer_map="0,1,2,0,1,2"), f"encoder.layer_map: got '0,1,2,0,1,2'; allowed: {LABELS}"),
    "map of text": (encoder(layer_map=list("012012")), "layer_map: got ['0', '1', '2', '0', '1', '2']; allowed: "),
    "map of floats": (encoder(layer_map=[0.0, 1.0]), f"layer_map: got [0.0, 1.0]; allowed: {LABELS}"),
    "map of booleans": (encoder(layer_map=[False, True]), f"layer_map: got [False, True]; allowed: {LABELS}"),
    "map is empty": (encoder(layer_map=[]), f"layer_map: got []; allowed: {LABELS}"),
    "map is missing": (without("layer_map"), f"layer_map: got None; allowed: {LABELS}"),
    "negative label": (encoder(layer_map=[0, 1, 2, 0, 1, -1]), f"got [0, 1, 2, 0, 1, -1]; allowed: {LABELS}"),
    "huge label": (encoder(layer_map=[0, 1, 2, 0, 1, 10**30]), "layer_map: got [0, 1, 2, 0, 1, 1000000000"),
    "labels out of order": (encoder(layer_map=[1, 0, 2, 1, 0, 2]), "got [1, 0, 2, 1, 0, 2]; allowed: "),
    "map of fewer layers": (encoder(layer_map=[0, 1]), "layer_map: got [0, 1]; allowed: one label per layer"),
    "map of more sets": (encoder(layer_map=[0, 1, 2, 3, 0, 1]), "lacks the tensor encoder.layers.3."),
    "map of fewer sets": (encoder(layer_map=[0, 1, 0, 1, 0, 1]), "has a tensor encoder.layers.2."),
    "scope is missing": (without("scope"), "encoder.scope: got None; allowed: ['layer'], or a list of self_attn, "),
    "scope is text": (encoder(scope="layer"), "encoder.scope: got 'layer'; allowed: "),
    "scope is unknown": (encoder(scope=["layers"]), "encoder.scope: got ['layers']; allowed: "),
    "scope is of numbers": (encoder(scope=[0]), "encoder.scope: got [0]; allowed: "),
    "scope is smaller": (encoder(scope=["ffn"]), "lacks the tensor encoder.layers.3.self_attn"),
    "aliases is a list": (extra(aliases=["x"]), "aliases: got ['x']; allowed: a dict"),
    "alias of nothing": (
        extra(aliases={"x.weight": "y.weight"}),
        "aliases.x.weight: got 'y.weight'; allowed: a tensor",
    ),
    "alias of a number": (extra(aliases={"x": 3}), "aliases.x: got 3; allowed: a tensor"),
    "alias of a layer": (
        extra(aliases={"encoder.layers.3.fc1.weight": "encoder.embed_tokens.weight"}),
        "allowed: names of tensors outside of layers",
    ),
    "depths are text": (extra(depths="3"), "_extra_state.depths: got '3'; allowed: a list of one number of layers per"),
    "depths of one stack": (extra(depths=[{"encoder": 3}]), "depths: got [{'encoder': 3}]; allowed: "),
    "depths beyond the map": (extra(depths=[{"encoder": 7, "decoder": 3}]), "depths: got [{'encoder': 7, "),
    "depth of no layers": (extra(depths=[{"encoder": 0, "decoder": 3}]), "depths: got [{'encoder': 0, "),
    "frozen is a list": (extra(frozen=[0]), "frozen: got [0]; allowed: a dict"),
    "frozen beyond the map": (extra(frozen={"encoder": [6]}), "frozen.encoder: got [6]; allowed: layers of the map"),
    "frozen is negative": (extra(frozen={"encoder": [-1]}), "frozen.encoder: got [-1]; allowed: "),
    "frozen is of text": (extra(frozen={"encoder": "0"}), "frozen.encoder: got '0'; allowed: "),
    "frozen of no stack": (
        extra(frozen={"middle": [0]}),
        "frozen: got 'middle'; allowed: a stack that has a layer map",
    ),
    "changed by a number": (extra(map_changed_by=3), "map_changed_by: got 3; allowed: text"),
    "pending is text": (extra(admin_pending="no"), "admin_pending: got 'no'; allowed: true or false"),
    "tensor is missing": (
        lambda s: s.pop("encoder.layers.1.fc1.weight"),
        "lacks the tensor encoder.layers.1.fc1.weight",
    ),
    "tensor is misshapen": (
        lambda s: s.update({"encoder.layers.1.fc1.weight": torch.ones(3, 16)}),
        "tensor encoder.layers.1.fc1.weight has the shape [3, 16], but [32, 16] in other layers; allowed: equal shapes",
    ),
    "tensor is text": (
        lambda s: s.update({"encoder.layers.1.fc1.bias": "0"}),
        "lacks the tensor encoder.layers.1.fc1.bias",
    ),
    "adapters without tensors": (
        extra(depth={"lora": {"rank": 2, "of": ["fc1"]}}),
        "records lora as a depth parameter but has no tensor *.depth.lora.*",
    ),
    "factors without tensors": (extra(depth={"scale": True}), "records scale as a depth parameter but has no tensor"),
    "name is a number": (lambda s: s.update({3: torch.ones(1)}), "has the entry 3; allowed: names of tensors"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_entries_are_refused_by_every_command(case, trained, tmp_path, capsys):
    change, message = MALFORMED[case]
    content, path = load_checkpoint(trained), tmp_path / "bad.pt"
    content["model"] = dict(content["model"])
    change(content["model"])
    save_atomically(content, path)
    output = ["--output", str(tmp_path / "output")]
    (tmp_path / "in").write_text("w5\n")
    for words in (
        ["average", path, trained, *output],
        ["untie", path, *output],
        ["tie", path, "--sharing", "universal", *output],
        ["export", path, "--materialize", *output],
        ["export", path, "--to", "ctranslate2", *output],
        ["translate", path, tmp_path / "in", "--prepared"],
    ):
        assert main([str(word) for word in words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert (error.count("\n"), f"error: {path}: the checkpoint" in error) == (1, True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bad.pt", "in"]


@pytest.mark.parametrize("case", [name for name in MALFORMED if "tensor" not in name and "name is" not in name])
def test_malformed_entries_are_refused_when_a_model_loads_them(case):
    """Load the state dict like fairseq's own commands, without this package's reader."""
    options = BY_NAME["cycle"].options
    state = build(**options).state_dict()
    MALFORMED[case][0](state)
    with pytest.raises(SharingError, match=r"^the checkpoint") as caught:
        build(seed=2, **options).load_state_dict(state)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("encoder.layers.0.fc1.weight"), "encoder.layers.0.fc1.weight: missing; allowed: [32, 16]"),
        (
            lambda s: s.update({"decoder.layers.0.fc2.bias": torch.ones(3)}),
            "decoder.layers.0.fc2.bias: [3]; allowed: [16]",
        ),
        (lambda s: s.update({"encoder.embed_tokens.weight": torch.ones(50)}), "encoder.embed_tokens.weight: [50]"),
    ],
)
def test_materializing_compares_tensors_with_the_model_s_arguments(change, message, data_dir, tmp_path):
    """Use stacks with one parameter set, which cannot be compared with other layers."""
    content = load_checkpoint(save(make_trainer(data_dir, BY_NAME["universal"]), tmp_path / "a.pt"))
    change(content["model"])
    with pytest.raises(SharingError) as caught:
        materialize(content)
    assert f"the checkpoint's tensor {message}" in str(caught.value)


def arguments(**values):
    return lambda content: vars(content["cfg"]["model"]).update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (arguments(encoder_layers="x"), "train.encoder_layers: 'x'; allowed: a whole number"),
        (arguments(encoder_layers=10**8), "train.encoder_layers: 100000000; allowed: 6, the length of its layer map"),
        (arguments(decoder_layers=5), "train.decoder_layers: 5; allowed: 6, the length of its layer map"),
        (arguments(decoder_layers=True), "train.decoder_layers: True; allowed: a whole number"),
        (arguments(decoder_attention_heads=0), "train.decoder_attention_heads: 0; allowed: numbers from 1"),
        (arguments(encoder_attention_heads=3), "train.encoder_attention_heads: 3; allowed: divisors of"),
        (arguments(encoder_embed_dim=1.5), "train.encoder_embed_dim: 1.5; allowed: a whole number"),
        (arguments(encoder_ffn_embed_dim=-4), "train.encoder_ffn_embed_dim: -4; allowed: numbers from 1"),
    ],
)
def test_senseless_arguments_are_refused_before_a_model_is_built(change, message, trained, tmp_path):
    content, path = load_checkpoint(trained), tmp_path / "bad.pt"
    change(content)
    save_atomically(content, path)
    with pytest.raises(SharingError) as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: the checkpoint's model has {message}")


def test_a_checkpoint_without_arguments_is_read(trained, tmp_path):
    content, path = load_checkpoint(trained), tmp_path / "no_arguments.pt"
    del content["cfg"]["model"]
    save_atomically(content, path)
    assert load_checkpoint(path)["model"].keys() == content["model"].keys()


# Damaged files.


def test_every_flipped_byte_of_a_record_is_detected(trained, tmp_path):
    """torch's reader does not verify checksums and would return the modified values."""
    path, whole = tmp_path / "flipped.pt", trained.read_bytes()
    with zipfile.ZipFile(trained) as archive:
        records = [(info.filename, info.header_offset, info.file_size) for info in archive.infolist() if info.file_size]
    generator = torch.Generator().manual_seed(0)
    for name, start, size in records[:: max(1, len(records) // 40)]:
        head = start + 30 + int.from_bytes(whole[start + 26 : start + 28], "little")
        head += int.from_bytes(whole[start + 28 : start + 30], "little")
        flipped = bytearray(whole)
        flipped[head + int(torch.randint(size, (), generator=generator))] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(SharingError, match=rf"^{path}: (damaged checkpoint: the record {name} |not a readable )"):
            load_checkpoint(path)


def test_fairseq_s_own_commands_detect_it_too(trained, data_dir, tmp_path):
    path, content = tmp_path / "flipped.pt", bytearray(trained.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(SharingError, match=f"^{path}: damaged checkpoint: the record "):
        checkpoint_utils.load_model_ensemble_and_task([str(path)])
    with pytest.raises(SharingError, match=f"^{path}: damaged checkpoint: the record "):
        make_trainer(data_dir, BY_NAME["cycle"]).load_checkpoint(str(path), reset_optimizer=True)


def test_a_damaged_last_checkpoint_is_not_resumed_from(trained, tmp_path):
    (tmp_path / "checkpoint1.pt").write_bytes(trained.read_bytes())
    damaged = bytearray(trained.read_bytes())
    damaged[len(damaged) // 2] ^= 64
    (tmp_path / "checkpoint_last.pt").write_bytes(damaged)
    assert newest_readable(tmp_path) == tmp_path / "checkpoint1.pt"


def test_files_of_the_format_without_checksums_are_read(trained, tmp_path):
    path = tmp_path / "old.pt"
    content = load_checkpoint(trained)
    torch.save(content, path, _use_new_zipfile_serialization=False)
    refuse_damaged(path)
    assert load_checkpoint(path)["model"].keys() == content["model"].keys()
