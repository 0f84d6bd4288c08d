"""Averages of checkpoints, and materialized files for stock fairseq."""

from __future__ import annotations

import shutil

import pytest
import torch
from tiny_training import LAYERS, SUBSETS

from fairseq_sharing.checkpoints.files import load_checkpoint


@pytest.fixture(scope="module")
def averaged(trained, commands, tmp_path_factory):
    """The average of the two epochs of ``trained``."""
    output = tmp_path_factory.mktemp("averaged") / "average.pt"
    inputs = [trained / "checkpoint1.pt", trained / "checkpoint2.pt"]
    commands.run("fairseq_sharing", "average", *inputs, "--output", output)
    return output


def test_an_average_is_that_of_fairseq_with_the_same_ties(trained, averaged):
    """fairseq's script, which its package does not install, sums in the precision of the files and divides."""
    models = [load_checkpoint(trained / f"checkpoint{epoch}.pt")["model"] for epoch in (1, 2)]
    mean = load_checkpoint(averaged)["model"]
    assert mean.keys() == models[0].keys()
    assert mean["_extra_state"] == models[0]["_extra_state"]
    assert not any(name.startswith(("encoder.layers.2.", "decoder.layers.3.")) for name in mean), (
        "a shared tensor was saved twice"
    )
    for name, value in mean.items():
        if torch.is_tensor(value):
            expected = models[0][name].clone().add_(models[1][name]).div_(2)
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-8)
            assert value.untyped_storage().nbytes() == value.nbytes


def test_an_average_translates_and_is_smaller(trained, averaged, translate):
    assert averaged.stat().st_size < (trained / "checkpoint1.pt").stat().st_size
    assert sorted(translate(averaged)["H"]) == list(range(SUBSETS["test1"]))


def test_averages_of_different_maps_are_refused(trained, tmp_path, train, commands):
    model = ["--arch", "transformer_sharing", *LAYERS, "--sharing", "cycle", "--unique-layers", "2"]
    train(tmp_path, "--max-update", "1", model=model)
    inputs = [trained / "checkpoint1.pt", tmp_path / "checkpoint_last.pt"]
    done = commands.run("fairseq_sharing", "average", *inputs, "--output", tmp_path / "average.pt", status=2)
    assert done.stderr == (
        f"fairseq-sharing average: error: {inputs[1]}: its layer map differs from that of {inputs[0]}; "
        "allowed: equal maps\n"
    )
    assert not (tmp_path / "average.pt").exists()


def test_stock_fairseq_translates_a_materialized_model_identically(trained, tmp_path, commands, translate):
    plain = tmp_path / "plain.pt"
    words = ("export", trained / "checkpoint_last.pt", "--materialize", "--output", plain)
    hint = commands.run("fairseq_sharing", *words).stdout
    assert hint.endswith(f"fairseq-generate DATA --path {plain} --required-batch-size-multiple 1\n")
    # torch reads the file safely, without any fairseq class.
    state = torch.load(plain, weights_only=True)
    assert state["cfg"]["model"]["arch"] == "transformer"
    assert sum(name.startswith("encoder.layers.") and name.endswith("fc1.weight") for name in state["model"]) == 4
    # By default, stock fairseq drops the remainder of a division by 8.
    every = ["--required-batch-size-multiple", "1"]
    stock = translate(plain, *every, user_dir=None, subset="test")
    ours = translate(trained / "checkpoint_last.pt", *every, subset="test")
    assert len(stock["H"]) == SUBSETS["test"]
    assert stock == ours


def test_going_on_past_a_damaged_checkpoint(trained, tmp_path, train):
    """With a truncated checkpoint_last.pt, training resumes from the newest intact checkpoint and reports it."""
    for name in ("checkpoint1.pt", "checkpoint2.pt", "checkpoint_last.pt"):
        shutil.copy2(trained / name, tmp_path)
    last = tmp_path / "checkpoint_last.pt"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    done = train(tmp_path, "--max-epoch", "3")
    assert f"{last}: not a readable checkpoint (" in done.stdout
    assert f"; resuming from {tmp_path / 'checkpoint2.pt'}" in done.stdout
    assert load_checkpoint(last)["extra_state"]["train_iterator"]["epoch"] == 4
    assert (tmp_path / "checkpoint3.pt").exists()
