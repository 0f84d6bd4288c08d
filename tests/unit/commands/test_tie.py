"""The command ``tie``: its file, its output and its errors."""

from __future__ import annotations

import re

import pytest
import torch
from fairseq import checkpoint_utils
from sharing_cases import BY_NAME
from tiny_models import assert_equal_models, assert_tied, dictionary, make_trainer, save, train_step

from fairseq_sharing.checkpoints.files import load_checkpoint, save_atomically
from fairseq_sharing.checkpoints.summary import describe_checkpoint
from fairseq_sharing.checkpoints.tie import tie
from fairseq_sharing.commands import main
from fairseq_sharing.decoding import model_files
from fairseq_sharing.errors import SharingError
from fairseq_sharing.models.transformer_sharing import TransformerSharingModel

CYCLE = {"sharing": "cycle", "unique_layers": 3}


@pytest.fixture(scope="module")
def vanilla_file(data_dir, tmp_path_factory):
    """A file of fairseq's trainer with fairseq's own model, after one update. Do not modify it."""
    trainer = make_trainer(data_dir, BY_NAME["none"], arch="transformer")
    train_step(trainer)
    return save(trainer, tmp_path_factory.mktemp("vanilla") / "checkpoint1.pt")


def test_the_file_has_no_optimizer_state_and_loads_in_fairseq(vanilla_file, data_dir, tmp_path):
    path = tmp_path / "tied.pt"
    words = ["--sharing", "cycle", "--unique-layers", "3", "--init", "average", "--output"]
    assert main(["tie", str(vanilla_file), *words, str(path)]) == 0
    content = load_checkpoint(path)
    assert content.keys().isdisjoint({"last_optimizer_state", "task_state"})
    assert content["optimizer_history"][-1]["num_updates"] == 0
    described = describe_checkpoint(path)
    assert described["sharing"] == {"encoder": "cycle", "decoder": "cycle"}
    assert described["updates"] == 0
    assert described["layer_map"]["decoder"] == [0, 1, 2, 0, 1, 2]
    (model,), cfg = checkpoint_utils.load_model_ensemble([str(path)], strict=True)
    assert (type(model), cfg.model.arch) == (TransformerSharingModel, "transformer_sharing")
    assert_tied(BY_NAME["cycle"], model)
    hub = TransformerSharingModel.from_pretrained(str(tmp_path), path.name, str(data_dir))
    assert_equal_models(hub.models[0], model)
    assert set(hub.translate("w3 w4 w5", beam=2, max_len_b=9).split()) <= set(dictionary().symbols)


def test_a_run_whose_data_is_gone_is_tied_without_it(vanilla_file, tmp_path):
    run, output = tmp_path / "run", tmp_path / "output.pt"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "checkpoint1.pt").write_bytes(vanilla_file.read_bytes())
    (run / "config.yaml").write_text("run: r\ndataset: d\nseed: 1\ntrain: {}\nevaluate: {average_last: 1}\n")
    (run / "run.json").write_text('{"data": "gone/data"}')
    assert main(["tie", str(run), "--sharing", "cycle", "--unique-layers", "3", "--output", str(output)]) == 0
    average = load_checkpoint(run / "checkpoints" / "checkpoint_average.pt")["model"]
    assert torch.equal(
        load_checkpoint(output)["model"]["encoder.layers.0.fc1.weight"], average["encoder.layers.0.fc1.weight"]
    )


def test_fairseq_s_trainer_starts_from_it_and_refuses_another_map(vanilla_file, data_dir, tmp_path):
    save_atomically(tie(load_checkpoint(vanilla_file), CYCLE), tmp_path / "tied.pt")
    finetune = {"reset_optimizer": True, "reset_lr_scheduler": True, "reset_meters": True}
    trainer = make_trainer(data_dir, BY_NAME["cycle"])
    trainer.load_checkpoint(str(tmp_path / "tied.pt"), **finetune)
    source = load_checkpoint(vanilla_file)["model"]
    assert trainer.get_num_updates() == 0
    assert torch.equal(trainer.model.encoder.layers[4].fc1.weight, source["encoder.layers.3.fc1.weight"])
    train_step(trainer, seed=4)
    assert trainer.get_num_updates() == 1
    for other in ("cycle_rev", "none", "attention_scope"):
        with pytest.raises(SharingError, match=r"the checkpoint's encoder has the layer map 0,1,2,0,1,2 \(layer\)"):
            make_trainer(data_dir, BY_NAME[other]).load_checkpoint(str(tmp_path / "tied.pt"), **finetune)


def test_the_bytes_of_the_file_are_always_the_same(vanilla_file, tmp_path):
    files = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        files.append(tmp_path / name / "tied.pt")
        words = ["tie", str(vanilla_file), "--sharing", "sequence", "--unique-layers", "2", "--output", str(files[-1])]
        assert main([*words, "--init", "average", "--align"]) == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].stat().st_size < vanilla_file.stat().st_size / 3


def test_the_command_prints_how_to_validate_and_to_train(vanilla_file, tmp_path, capsys):
    path = tmp_path / "tied.pt"
    words = ["--encoder-sharing", "sequence", "--encoder-unique-layers", "2", "--output", str(path)]
    assert main(["tie", str(vanilla_file), *words]) == 0
    printed = capsys.readouterr().out
    for file in (vanilla_file, path):
        assert re.search(
            rf"  fairseq-validate DATA --user-dir \S+ --path {file} --task translation --max-tokens 100\n", printed
        )
    assert re.search(
        r"train with: fairseq-train DATA --user-dir \S+ --arch transformer_sharing --encoder-sharing sequence "
        rf"--encoder-unique-layers 2 --finetune-from-model {path} ",
        printed,
    )


def test_errors_name_the_file_and_write_nothing(vanilla_file, tmp_path, capsys):
    words = ["tie", str(vanilla_file), "--sharing", "cycle", "--output", str(tmp_path / "tied.pt")]
    assert main(words) == 2
    assert capsys.readouterr().err.startswith(f"fairseq-sharing tie: error: {vanilla_file}: --unique-layers: missing; ")
    assert not list(tmp_path.iterdir())


def test_data_that_is_no_folder_is_refused_before_any_work(vanilla_file, tmp_path, capsys):
    words = ["tie", str(vanilla_file), "--sharing", "universal", "--output", str(tmp_path / "tied.pt")]
    assert main([*words, "--data", str(tmp_path / "data")]) == 2
    assert capsys.readouterr().err == (
        f"fairseq-sharing tie: error: --data {tmp_path / 'data'}: no such folder; allowed: a prepared data directory, "
        "or binarized data\n"
    )
    assert not list(tmp_path.iterdir())


def test_a_run_directory_stands_for_its_averaged_checkpoint(vanilla_file, tmp_path, monkeypatch):
    files = model_files.ModelFiles("run", checkpoints=(vanilla_file,))
    monkeypatch.setattr(model_files, "find_model", lambda name, *_: files if name == str(tmp_path) else None)
    written = [tmp_path / "one.pt", tmp_path / "two.pt"]
    for source, output in zip((tmp_path, vanilla_file), written, strict=True):
        assert main(["tie", str(source), "--sharing", "universal", "--output", str(output)]) == 0
    assert written[0].read_bytes() == written[1].read_bytes()


def test_the_checkpoint_itself_is_refused_as_output(vanilla_file, tmp_path, capsys):
    before, output = vanilla_file.read_bytes(), tmp_path / "link.pt"
    output.symlink_to(vanilla_file)
    assert main(["tie", str(vanilla_file), "--sharing", "universal", "--output", str(output)]) == 2
    assert capsys.readouterr().err == (
        f"fairseq-sharing tie: error: --output {output}: would overwrite the input {vanilla_file}; "
        "allowed: another file\n"
    )
    assert vanilla_file.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "rules", "message"),
    [
        ({"depth_lora_of": "q"}, {}, "--depth-lora-of q: there are no adapters; allowed: with --depth-lora"),
        ({}, {"init": "zz"}, "--init zz: allowed: stepwise, average, first"),
        ({"depth_lora": 2}, {"fit_iterations": 1001}, "--fit-iterations 1001: allowed: 0 to 1,000"),
        ({"depth_lora": 2}, {"fit_iterations": -1}, "--fit-iterations -1: allowed: 0 to 1,000"),
        ({"depth_lora": 2, "depth_lora_of": ""}, {}, "--depth-lora-of : allowed: a comma-separated list of q, k, v"),
    ],
)
def test_senseless_rules_are_refused(vanilla_file, options, rules, message):
    with pytest.raises(SharingError) as error:
        tie(load_checkpoint(vanilla_file), {"sharing": "universal", **options}, **rules)
    assert str(error.value).startswith(message)
