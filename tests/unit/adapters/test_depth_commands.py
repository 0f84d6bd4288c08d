"""Depth parameters on the command line: tie, untie --merge and export."""

from __future__ import annotations

import pytest
import torch
from depth_models import CYCLE
from sharing_cases import BY_NAME
from tied_models import logits
from tiny_models import EMBED, FFN, build, make_trainer, save, tensors, train_step

from fairseq_sharing.adapters.effective import stored_bytes
from fairseq_sharing.checkpoints.files import load_checkpoint
from fairseq_sharing.checkpoints.tie import tie
from fairseq_sharing.commands import main
from fairseq_sharing.schedules.at_rest import untie


@pytest.fixture(scope="module")
def vanilla_file(data_dir, tmp_path_factory):
    trainer = make_trainer(data_dir, BY_NAME["none"], arch="transformer")
    train_step(trainer)
    return save(trainer, tmp_path_factory.mktemp("vanilla") / "checkpoint1.pt")


@pytest.fixture(scope="module")
def adapted_file(data_dir, tmp_path_factory):
    trainer = make_trainer(data_dir, BY_NAME["cycle"], depth_lora=3)
    train_step(trainer)
    return save(trainer, tmp_path_factory.mktemp("adapted") / "checkpoint1.pt")


@pytest.mark.parametrize("flag", ["--lora-rank", "--depth-lora"])
def test_tie_writes_adapters_and_prints_the_flags_of_training(flag, vanilla_file, tmp_path, capsys):
    words = ["--sharing", "cycle", "--unique-layers", "3", flag, "2", "--depth-lora-of", "v,q", "--depth-norm"]
    path = tmp_path / "tied.pt"
    assert main(["tie", str(vanilla_file), *words, "--fit-iterations", "2", "--output", str(path)]) == 0
    options = {**CYCLE, "depth_lora": 2, "depth_lora_of": "q,v", "depth_norm": True}
    expected = tie(load_checkpoint(vanilla_file), options, fit_iterations=2)["model"]
    found = load_checkpoint(path)["model"]
    assert found["_extra_state"] == expected["_extra_state"]
    assert all(torch.equal(value, expected[name]) for name, value in tensors(found).items())
    printed = " ".join(capsys.readouterr().out.split())
    assert "--sharing cycle --unique-layers 3 --depth-lora 2 --depth-lora-of q,v --depth-norm --finetune" in printed


def test_untie_merges_on_request(adapted_file, tmp_path):
    for name, words in (("kept", []), ("merged", ["--merge"])):
        assert main(["untie", str(adapted_file), *words, "--output", str(tmp_path / f"{name}.pt")]) == 0
    for name, merge in (("kept", False), ("merged", True)):
        found = load_checkpoint(tmp_path / f"{name}.pt")["model"]
        expected = untie(load_checkpoint(adapted_file), merge)["model"]
        assert found.keys() == expected.keys()
        assert any(".depth." in tensor for tensor in found) != merge
        assert all(torch.equal(value, expected[tensor]) for tensor, value in tensors(found).items())


def test_export_states_how_much_larger_the_file_is(adapted_file, data_dir, tmp_path, capsys):
    path = tmp_path / "stock.pt"
    assert main(["export", str(adapted_file), "--materialize", "--output", str(path)]) == 0
    stock, shared = load_checkpoint(path)["model"], load_checkpoint(adapted_file)["model"]
    growth = stored_bytes(stock.values()) - stored_bytes(shared.values())
    printed = " ".join(capsys.readouterr().out.split())
    assert f"matrices that layers shared are stored per depth, {growth:,} bytes more" in printed
    # The matrices of three borrowing depths per stack (12 attention and 4 feed-forward matrices in all), without the
    # adapters of all six depths.
    matrices = 3 * (12 * EMBED * EMBED + 4 * EMBED * FFN)
    adapters = 6 * 3 * (12 * 2 * EMBED + 4 * (EMBED + FFN))
    assert growth == 4 * (matrices - adapters)
    model = build(**CYCLE, depth_lora=3)
    model.load_state_dict(shared)
    plain = build(arch="transformer")
    plain.load_state_dict(stock)
    torch.testing.assert_close(logits(plain), logits(model), rtol=0, atol=1e-5)


def test_an_export_without_adapters_does_not_grow(data_dir, tmp_path, capsys):
    trainer = make_trainer(data_dir, BY_NAME["cycle"])
    train_step(trainer)
    path = save(trainer, tmp_path / "checkpoint1.pt")
    assert main(["export", str(path), "--materialize", "--output", str(tmp_path / "stock.pt")]) == 0
    assert "bytes more" not in capsys.readouterr().out
