"""Commands at a depth: translate, export, describe."""

from __future__ import annotations

import json

import pytest
import torch
from command_errors import failed
from scheduled_training import make_trainer, train
from sharing_cases import BY_NAME
from tiny_models import batch, save
from tiny_models import make_trainer as make_case

from fairseq_sharing.checkpoints.files import load_checkpoint
from fairseq_sharing.checkpoints.tie import tie
from fairseq_sharing.commands import main
from fairseq_sharing.decoding.at_depth import at_depth
from fairseq_sharing.decoding.ctranslate2_export import export
from fairseq_sharing.decoding.fairseq_engine import load_models
from fairseq_sharing.decoding.model_files import ModelFiles
from fairseq_sharing.decoding.translator import Translator
from fairseq_sharing.depths.settings import DepthRequest
from fairseq_sharing.errors import SharingError

SENTENCES = ["w5 w6 w7", "w9", "w7 w8 w9 w5 w20 w21"]


@pytest.fixture(scope="module")
def checkpoint(data_dir, tmp_path_factory):
    """A cycle model of 4 layers, trained for the depths 2, 3 and 4."""
    trainer = make_trainer(data_dir, sharing="cycle", unique_layers=2, depths="2,3,4", task="translation", norm="post")
    train(trainer, 3)
    return save(trainer, tmp_path_factory.mktemp("trained") / "checkpoint1.pt")


def files_of(path, data_dir) -> ModelFiles:
    languages = {"source": "en", "target": "de"}
    return ModelFiles(str(path), checkpoints=(path,), dictionaries=data_dir, languages=languages)


def test_translate_at_a_depth_equals_the_model_that_runs_these_layers(checkpoint, data_dir):
    (model,), _, _ = load_models(files_of(checkpoint, data_dir))
    scores = {}
    for depth in (2, 3, 4, 2):
        with at_depth(files_of(checkpoint, data_dir), DepthRequest(depth)) as files:
            (smaller,), _, _ = load_models(files)
        assert [len(stack.layers) for stack in smaller.stacks.values()] == [depth, depth]
        assert smaller.depths is None
        model.use_depth({"encoder": depth, "decoder": depth})
        with torch.no_grad():
            assert torch.equal(model(**batch())[0], smaller(**batch())[0])
        found = Translator(checkpoint, data=data_dir, threads=1, prepared=True, depth=depth).translate(SENTENCES)
        assert scores.setdefault(depth, found) == found, "translating twice gives the same text"


def test_translate_command(checkpoint, data_dir, tmp_path, capfd):
    (tmp_path / "in.txt").write_text("\n".join(SENTENCES) + "\n")
    words = ["translate", checkpoint, tmp_path / "in.txt", "--data", data_dir, "--prepared", "--threads", "1"]
    texts = []
    for depth in (["--depth", "2"], ["--encoder-depth", "2", "--decoder-depth", "2"], []):
        assert main([str(word) for word in [*words, *depth, "--nbest", "2"]]) == 0
        texts.append(capfd.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    error = failed(capfd, [*words, "--decoder-depth", "2"])
    refusal = "the model was not trained at it; allowed: 2, 3, 4 (or --force-depth)"
    assert error == f"{checkpoint}: depth encoder 4 and decoder 2: {refusal}"
    assert main([str(word) for word in [*words, "--decoder-depth", "2", "--force-depth"]]) == 0
    error = failed(capfd, [*words, "--depth", "1", "--force-depth"])
    assert error == f"{checkpoint}: --depth 1: leaves out parameter set 1 of the layer map 0,1,0,1; allowed: 2, 3, 4"
    assert (
        failed(capfd, [*words, "--force-depth"])
        == "--force-depth: requires --depth, --encoder-depth or --decoder-depth"
    )


def test_model_trained_at_one_depth_refuses_others(data_dir, tmp_path):
    path = save(make_case(data_dir, BY_NAME["cycle"]), tmp_path / "checkpoint1.pt")
    with pytest.raises(SharingError) as refused:
        Translator(path, data=data_dir, prepared=True, depth=3)
    assert str(refused.value) == f"{path}: depth 3: the model was not trained at it; allowed: 6 (or --force-depth)"


def test_exports_at_several_depths(checkpoint, data_dir, tmp_path):
    sizes = {}
    for depth in (2, 3, 4):
        with at_depth(files_of(checkpoint, data_dir), DepthRequest(depth)) as files:
            exported = export(files, tmp_path / f"d{depth}")
        assert exported.difference.largest <= 0.01
        sizes[depth] = exported.tensors[1]
        manifest = json.loads((exported.path / "manifest.json").read_text())
        assert manifest["depth"] == {"encoder": depth, "decoder": depth}
        assert manifest["layer_map"]["decoder"] == [0, 1, 0, 1][:depth]
        assert exported.size < 1.1 * (tmp_path / "d2" / "model.bin").stat().st_size
    assert len(set(sizes.values())) == 1, "each set is stored once"
    scored = [Translator(str(tmp_path / f"d{n}"), prepared=True, threads=1).translate(SENTENCES) for n in (2, 4)]
    again = Translator(checkpoint, engine="ctranslate2", data=data_dir, prepared=True, threads=1, depth=2)
    assert again.translate(SENTENCES) == scored[0]
    with pytest.raises(SharingError, match="an exported model has one depth; export the checkpoint with --depth"):
        Translator(str(tmp_path / "d2"), prepared=True, depth=2)


@pytest.mark.parametrize(
    ("name", "depth"), [("sequence", 3), ("cycle_rev", 3), ("sandwich", 4), ("none", 2), ("universal", 1)]
)
def test_export_of_a_forced_depth_computes_the_active_layers(name, depth, data_dir, tmp_path, norm):
    path = save(make_case(data_dir, BY_NAME[name], norm), tmp_path / "checkpoint1.pt")
    with at_depth(files_of(path, data_dir), DepthRequest(depth, force=True)) as files:
        assert export(files, tmp_path / "exported").difference.largest <= 0.01


def test_stock_checkpoint_has_the_active_layers(checkpoint, data_dir, tmp_path, capfd):
    output = tmp_path / "stock.pt"
    words = ["export", checkpoint, "--materialize", "--output", output, "--depth", "3"]
    assert main([str(word) for word in words]) == 0
    stock = load_checkpoint(output)
    arguments = stock["cfg"]["model"]
    assert arguments["arch"] == "transformer"
    assert (arguments["encoder_layers"], arguments["decoder_layers"]) == (3, 3)
    assert not [name for name in arguments if "depth" in name]
    with at_depth(files_of(checkpoint, data_dir), DepthRequest(3)) as files:
        (ours,), _, _ = load_models(files)
    (theirs,), _, _ = load_models(files_of(output, data_dir))
    with torch.no_grad():
        torch.testing.assert_close(ours(**batch())[0], theirs(**batch())[0], rtol=0, atol=1e-6)


def test_refused_depth_of_export_is_one_line(checkpoint, data_dir, tmp_path, capfd):
    words = [
        "export",
        checkpoint,
        "--data",
        data_dir,
        "--to",
        "ctranslate2",
        "--output",
        tmp_path / "out",
        "--depth",
        "1",
    ]
    assert (
        failed(capfd, words)
        == f"{checkpoint}: depth 1: the model was not trained at it; allowed: 2, 3, 4 (or --force-depth)"
    )
    assert not (tmp_path / "out").exists()


def test_tied_checkpoint_of_another_size_has_no_depths(checkpoint):
    tied = tie(load_checkpoint(checkpoint), {"sharing": "universal", "encoder_layers": 3, "decoder_layers": 3})
    arguments = vars(tied["cfg"]["model"])
    assert (arguments["depths"], arguments["encoder_layers"]) == (None, 3)
    assert "depths" not in tied["model"]["_extra_state"]
