"""Write, average, read and summarize checkpoints: each shared tensor once, complete and small."""

from __future__ import annotations

import io
import os

import pytest
import torch
from fairseq import checkpoint_utils, utils
from sharing_cases import BY_NAME, LAYERS
from tiny_models import (
    EMBED,
    EMBEDDING_ALIASES,
    FFN,
    VOCABULARY,
    arguments,
    assert_equal_models,
    assert_tied,
    batch,
    build,
    build_case,
    make_trainer,
    perturb,
    tensors,
    to_bytes,
    train_step,
)

from fairseq_sharing.checkpoints.averaging import average_checkpoints
from fairseq_sharing.checkpoints.choose import last_epochs
from fairseq_sharing.checkpoints.files import load_checkpoint, save_atomically
from fairseq_sharing.checkpoints.sharing_state import recorded_sharing
from fairseq_sharing.checkpoints.summary import describe_checkpoint
from fairseq_sharing.errors import SharingError
from fairseq_sharing.models.transformer_sharing import TransformerSharingModel


def canonical_names(case, vanilla) -> set[str]:
    """Return the tensor names of a checkpoint, from fairseq's own names and the case's map."""
    names = {case.source(name) for name in vanilla.state_dict()}
    return names - EMBEDDING_ALIASES.keys() | {"_extra_state"}


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
    assert recorded_sharing(model.state_dict()) == model.sharing


def test_state_dict_of_a_wrapped_model_is_canonical_too(model):
    wrapped = torch.nn.ModuleDict({"module": model})
    assert wrapped.state_dict().keys() == {f"module.{name}" for name in model.state_dict()}


# Save and load.


def test_load_restores_values_ties_and_outputs_and_saves_the_same_bytes(case, norm, model):
    first = to_bytes(model.state_dict())
    other = build(norm, seed=5, **case.options).eval()
    other.load_state_dict(torch.load(io.BytesIO(first), weights_only=True), strict=True)
    assert_equal_models(other, model)
    assert_tied(case, other)
    with torch.no_grad():
        assert torch.equal(other(**batch())[0], model(**batch())[0])
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
    """fairseq copies every entry of a half-precision state dict separately."""
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


def test_resumed_trainer_is_bitwise_equal(case, norm, trained, data_dir):
    """Compare weights, ties, optimizer state and the next update with an uninterrupted training."""
    resumed = make_trainer(data_dir, case, norm)
    perturb(resumed.model, seed=8)
    resumed.load_checkpoint(str(trained.path))
    assert resumed.get_num_updates() == 1
    train_step(resumed, seed=4)
    assert_equal_models(resumed.model, trained.next_model)
    assert_tied(case, resumed.model)


# Averaging.


def write(path, model, case):
    """Write a file with the parts of a checkpoint that generation requires."""
    content = {"cfg": {"model": arguments(**case.options)}, "model": model.state_dict()}
    save_atomically(content, path)
    return path


def test_average_is_the_mean_and_keeps_ties_and_size(case, trained, tmp_path):
    paths, states = [trained.path], [load_checkpoint(trained.path)["model"]]
    generator = torch.Generator().manual_seed(4)
    for number in (2, 3):
        other = load_checkpoint(trained.path)
        for name, value in tensors(other["model"]).items():
            if not name.endswith("version"):  # fairseq's number of the format
                value.add_(torch.randn(value.shape, generator=generator))
        save_atomically(other, tmp_path / f"checkpoint{number}.pt")
        paths.append(tmp_path / f"checkpoint{number}.pt")
        states.append(other["model"])
    average_checkpoints(paths, tmp_path / "average.pt")
    (loaded,), _cfg = checkpoint_utils.load_model_ensemble([str(tmp_path / "average.pt")], strict=True)
    assert_tied(case, loaded)
    assert list(loaded.state_dict()) == list(states[0])
    for name, parameter in loaded.named_parameters():
        mean = torch.stack([state[name].double() for state in states]).mean(0)
        torch.testing.assert_close(parameter.double(), mean, rtol=0, atol=1e-6)
    assert "last_optimizer_state" not in load_checkpoint(tmp_path / "average.pt")
    other.pop("last_optimizer_state")
    save_atomically(other, tmp_path / "one.pt")
    sizes = [os.path.getsize(tmp_path / name) for name in ("average.pt", "one.pt")]
    assert abs(sizes[0] - sizes[1]) <= 0.01 * sizes[1]


def test_average_does_not_depend_on_the_order_of_the_files(tmp_path):
    case = BY_NAME["cycle"]
    models = [perturb(build(seed=seed, **case.options), seed) for seed in range(4)]
    paths = [write(tmp_path / f"{i}.pt", m, case) for i, m in enumerate(models)]
    for name, order in (("a.pt", paths), ("b.pt", paths[::-1])):
        average_checkpoints(order, tmp_path / name)
    one, other = (tensors(torch.load(tmp_path / n, weights_only=True)["model"]) for n in ("a.pt", "b.pt"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_average_refuses_other_maps_sizes_and_files(tmp_path):
    cycle, sequence = BY_NAME["cycle"], BY_NAME["sequence"]
    one = write(tmp_path / "one.pt", build(**cycle.options), cycle)
    other = write(tmp_path / "other.pt", build(**sequence.options), sequence)
    wide = write(tmp_path / "wide.pt", build(encoder_ffn_embed_dim=48, **cycle.options), cycle)
    (tmp_path / "broken.pt").write_bytes(one.read_bytes()[:5000])
    output = tmp_path / "average.pt"
    refused = [
        ([one, other], f"{other}: its layer map differs from that of {one}; allowed: equal maps"),
        (
            [one, wide],
            f"{wide}: tensor encoder.layers.0.fc1.bias differs in size from that of {one}, or only one of them has it",
        ),
        ([], "average requires at least one checkpoint, got none"),
        ([tmp_path / "none.pt"], f"{tmp_path / 'none.pt'}: no such checkpoint"),
    ]
    for paths, message in refused:
        with pytest.raises(SharingError) as caught:
            average_checkpoints(paths, output)
        assert str(caught.value) == message
    with pytest.raises(SharingError, match=rf"^{tmp_path}/broken.pt: not a readable checkpoint \(.+\)$"):
        average_checkpoints([one, tmp_path / "broken.pt"], output)
    assert not output.exists()


def test_last_epochs_are_taken_by_number(tmp_path):
    names = ["checkpoint1.pt", "checkpoint2.pt", "checkpoint10.pt", "checkpoint_last.pt", "checkpoint_best.pt"]
    for name in [*names, "checkpoint_3_500.pt", "checkpoint11.pt.tmp"]:
        (tmp_path / name).touch()
    assert [path.name for path in last_epochs(tmp_path, 2)] == ["checkpoint2.pt", "checkpoint10.pt"]
    for count in (0, 4):
        with pytest.raises(SharingError) as caught:
            last_epochs(tmp_path, count)
        assert str(caught.value) == f"{tmp_path}: contains 3 epoch checkpoints, cannot average the last {count}"


# Reading files.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"not a readable checkpoint \(.+\)"),
        (b"\x00" * 400, r"not a readable checkpoint \(.+\)"),
        (b"hello, this is no checkpoint\n" * 20, r"not a readable checkpoint \(.+\)"),
        ([1, 2, 3], "not a fairseq checkpoint: it contains no model"),
        ({"epoch": 3}, "not a fairseq checkpoint: it contains no model"),
        ({"model": torch.ones(2)}, "not a fairseq checkpoint: it contains no model"),
    ],
)
def test_other_files_are_refused_in_one_line(content, message, tmp_path):
    path = tmp_path / "file.pt"
    path.write_bytes(content if isinstance(content, bytes) else to_bytes(content))
    with pytest.raises(SharingError, match=f"^{path}: {message}$"):
        load_checkpoint(path)


def test_a_file_that_would_execute_code_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    path = tmp_path / "file.pt"
    torch.save({"model": {"weight": Harmful()}}, path)
    with pytest.raises(SharingError) as caught:
        load_checkpoint(path)
    reason = "not read, because it could execute code (it contains posix.mkdir)"
    assert str(caught.value) == f"{path}: {reason}; allowed: tensors and plain values"
    assert not (tmp_path / "harm").exists()


def test_torchscript_program_is_refused(tmp_path):
    path = tmp_path / "file.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(1, 1), torch.ones(1, 1)), path)
    with pytest.raises(SharingError, match=r"could execute code \(it contains a TorchScript program\)"):
        load_checkpoint(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_files_of_many_kinds_are_refused(tmp_path):
    """Every failure of torch's reader becomes a SharingError, unless the file is still readable."""
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
            message = None
            try:
                load_checkpoint(path)
            except SharingError as error:
                message = str(error)
            refused += message is not None
            assert message is None or "\n" not in message
    assert refused > 100


# Describing files.


def test_description_of_a_checkpoint(case, norm, trained):
    summary = describe_checkpoint(trained.path)
    attention, ffn = 4 * EMBED * (EMBED + 1), 2 * EMBED * FFN + FFN + EMBED
    vanilla_layers = LAYERS * (attention + ffn + 4 * EMBED) + LAYERS * (2 * attention + ffn + 6 * EMBED)
    effective = VOCABULARY * EMBED + vanilla_layers + (4 * EMBED if norm == "pre" else 0)
    unique = sum(parameter.numel() for parameter in trained.model.parameters())
    assert summary["parameters"] == {"unique": unique, "effective": effective}
    assert summary["layer_map"] == {"encoder": list(case.encoder), "decoder": list(case.decoder)}
    assert summary["layers"] == {"encoder": LAYERS, "decoder": LAYERS}
    assert summary["unique_layers"] == {"encoder": len(set(case.encoder)), "decoder": len(set(case.decoder))}
    assert summary["scope"] == {"encoder": sorted_scope(case), "decoder": sorted_scope(case)}
    strategy = case.options.get("sharing", "none")
    assert summary["sharing"] == {"encoder": strategy, "decoder": case.options.get("decoder_sharing", strategy)}
    assert summary["arch"] == "transformer_sharing"
    assert summary["updates"] == 1


def sorted_scope(case) -> list[str]:
    order = ["layer", "self_attn", "encoder_attn", "ffn", "layer_norm"]
    return sorted(case.scope, key=order.index)
