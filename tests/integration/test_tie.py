"""From fairseq's own transformer to a shared one: tie, validate, fine-tune."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from fairseq_processes import PLUGIN, logged
from tiny_training import LAYERS

from fairseq_sharing.checkpoints.files import load_checkpoint
from fairseq_sharing.commands import main
from fairseq_sharing.evaluation import validation

VANILLA = ["--arch", "transformer", *LAYERS]
SHARED = ["--arch", "transformer_sharing", *LAYERS, "--sharing", "cycle", "--unique-layers", "2"]


@pytest.fixture
def validate_in_fork(commands, monkeypatch):
    """Run ``python -P -m fairseq_cli.validate ...`` as a fork with all modules imported."""

    def run(command, **_):
        return SimpleNamespace(returncode=0, stdout=commands.run(*command[3:]).stdout)

    monkeypatch.setattr(validation.subprocess, "run", run)


def test_a_vanilla_model_is_tied_validated_and_trained_on(train, commands, data, tmp_path, capsys, validate_in_fork):
    train(tmp_path / "vanilla", "--max-update", "13", "--lr", "0.01", model=VANILLA)
    source, tied = tmp_path / "vanilla" / "checkpoint_last.pt", tmp_path / "tied.pt"
    words = ["tie", source, "--sharing", "cycle", "--unique-layers", "2", "--init", "average", "--align"]
    assert main([str(word) for word in [*words, "--output", tied, "--data", data]]) == 0
    printed = capsys.readouterr().out
    losses = {}
    for path, when in ((source, "trained"), (tied, "tied, before training")):
        found = re.search(rf"validation of {path} \({when}\): loss (\S+), nll_loss (\S+), ppl \S+\n", printed)
        validated = ["--path", path, "--user-dir", PLUGIN, "--task", "translation", "--batch-size", 24]
        done = commands.run("fairseq_cli.validate", data, *validated, "--log-format", "json")
        theirs = logged(done.stdout, "valid_loss")[-1]
        assert [float(n) for n in found.groups()] == [float(theirs[f"valid_{n}"]) for n in ("loss", "nll_loss")]
        losses[when] = float(found[1])
    assert losses["tied, before training"] > losses["trained"]
    assert losses["trained"] == float(logged_loss(source))

    first = tmp_path / "first"
    done = train(first, "--finetune-from-model", tied, "--max-update", "1", "--lr", "1e-20", model=SHARED)
    assert f"Loaded checkpoint {tied} (epoch 1 @ 0 updates)" in done.stdout
    began, given = (load_checkpoint(path)["model"] for path in (first / "checkpoint_last.pt", tied))
    for name, value in given.items():
        assert not torch.is_tensor(value) or torch.equal(began[name], value), name
    assert began["_extra_state"] == given["_extra_state"]
    other = [*SHARED[:-4], "--sharing", "sequence", "--unique-layers", "2"]
    done = train(tmp_path / "other", "--finetune-from-model", tied, "--max-update", "1", model=other, status=None)
    assert done.stderr.splitlines()[-1].startswith(
        f"fairseq-train: error: {tied}: the checkpoint's encoder has the layer map 0,1,0,1 (layer), but the options "
    )


def logged_loss(path) -> float:
    """Return the validation loss that fairseq-train stored in a checkpoint."""
    return round(load_checkpoint(path)["extra_state"]["val_loss"], 3)
