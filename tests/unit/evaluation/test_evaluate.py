import io

import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console

from fairseq_sharing.decoding import model_files
from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation import averages, evaluate
from fairseq_sharing.evaluation.averages import (
    AVERAGE,
    average_last_epochs,
    average_name,
    finished_average,
    last_epoch_checkpoints,
)
from fairseq_sharing.evaluation.settings import EvaluationSettings
from fairseq_sharing.evaluation.steps import Steps
from fairseq_sharing.experiment.run_directory import RunDirectory
from fairseq_sharing.files import sha256


def _touch(folder, *names):
    for name in names:
        (folder / name).touch()
    return folder


def test_last_checkpoints_are_chosen_by_epoch_number(tmp_path):
    _touch(tmp_path, *(f"checkpoint{epoch}.pt" for epoch in (8, 9, 10, 11, 100)))
    _touch(tmp_path, "checkpoint_best.pt", "checkpoint_last.pt", "checkpoint_average.pt")
    _touch(tmp_path, "checkpoint_12_4000.pt", "checkpoint12.pt.tmp", "checkpoint.best_bleu_30.10.pt")
    names = [file.name for file in last_epoch_checkpoints(tmp_path, 3)]
    assert names == ["checkpoint10.pt", "checkpoint11.pt", "checkpoint100.pt"]
    assert len(last_epoch_checkpoints(tmp_path, 10)) == 5


def test_mid_epoch_checkpoints_are_used_if_no_epoch_has_ended(tmp_path):
    _touch(tmp_path, "checkpoint_1_450.pt", "checkpoint_1_1000.pt", "checkpoint_1_500.pt", "checkpoint_last.pt")
    names = [file.name for file in last_epoch_checkpoints(tmp_path, 2)]
    assert names == ["checkpoint_1_500.pt", "checkpoint_1_1000.pt"]


def test_no_checkpoint_is_an_error(tmp_path):
    _touch(tmp_path, "checkpoint_best.pt", "checkpoint_average.pt")
    with pytest.raises(SharingError, match="no checkpoint"):
        last_epoch_checkpoints(tmp_path, 10)


def test_a_run_that_stopped_in_its_first_epoch_uses_its_last_checkpoint(tmp_path):
    run = RunDirectory(tmp_path)
    run.checkpoints.mkdir()
    for weight in (1.0, 2.0):  # the run is resumed and stops in its first epoch again
        torch.save({"model": {"weight": torch.tensor([weight])}}, run.checkpoints / "checkpoint_last.pt")
        console = Console(file=io.StringIO(), width=500)
        assert finished_average(run, 10, console) is None
        averaged, names, _ = average_last_epochs(run, 10, Steps(run.steps_file), console)
        assert names == ["checkpoint_last.pt"]
        assert "checkpoint_last.pt: there is no epoch checkpoint" in console.file.getvalue()
        assert torch.load(averaged)["model"]["weight"].item() == weight
        assert finished_average(run, 10, console) == averaged


@pytest.mark.parametrize(
    ("name", "place", "epoch"),
    [
        ("checkpoint12.pt", (1, 0), 12),
        ("checkpoint_3_450.pt", (1, 0), 3),
        ("checkpoint_last.pt", (1, 7), 1),
        ("checkpoint_last.pt", (3, 0), 2),  # --no-epoch-checkpoints: the second epoch has ended
    ],
)
def test_the_epoch_of_a_result_is_that_of_its_newest_checkpoint(tmp_path, name, place, epoch):
    place = dict(zip(("epoch", "iterations_in_epoch"), place, strict=True))
    torch.save({"model": {}, "extra_state": {"train_iterator": place}}, tmp_path / "checkpoint_average.pt")
    assert evaluate._epoch(name, tmp_path / "checkpoint_average.pt") == epoch


def test_an_average_is_reused_if_its_checkpoints_were_removed(tmp_path):
    run, steps = RunDirectory(tmp_path), Steps(tmp_path / "steps.json")
    run.checkpoints.mkdir()
    for epoch in (1, 2):
        torch.save({"model": {"weight": torch.tensor([float(epoch)])}}, run.checkpoints / f"checkpoint{epoch}.pt")
    averaged, names, _ = average_last_epochs(run, 2, steps, Console(file=io.StringIO()))
    for name in names:
        (run.checkpoints / name).unlink()
    output = Console(file=io.StringIO())
    assert average_last_epochs(run, 2, steps, output)[:2] == (averaged, ["checkpoint1.pt", "checkpoint2.pt"])
    assert "using this existing average, since no epoch checkpoints are left" in output.file.getvalue()
    assert torch.load(averaged)["model"]["weight"].item() == 1.5


@pytest.fixture
def run(tmp_path):
    """Make a run with two epochs and a configuration that averages both."""
    run = RunDirectory(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    run.write_config(OmegaConf.create({"run": "a", "evaluate": {"average_last": 2}}))
    for epoch in (1, 2):
        _epoch(run, epoch, float(epoch))
    return run


def _epoch(run, epoch, weight):
    torch.save({"model": {"weight": torch.tensor([weight])}}, run.checkpoints / f"checkpoint{epoch}.pt")


def _average(run, count, name=AVERAGE):
    steps = Steps(run.steps_file)
    path, _, identity = average_last_epochs(run, count, steps, Console(file=io.StringIO()), name)
    return torch.load(path)["model"]["weight"].item(), identity


def test_an_average_is_recomputed_if_its_file_or_an_epoch_changed(run):
    weight, identity = _average(run, 2)
    assert weight == 1.5
    made = run.checkpoints / AVERAGE
    before = made.stat().st_mtime_ns
    assert _average(run, 2) == (1.5, identity)
    assert made.stat().st_mtime_ns == before, "done steps are skipped"
    torch.save({"model": {"weight": torch.tensor([9.0])}}, made)  # as another process might
    assert _average(run, 2) == (1.5, identity)
    _epoch(run, 2, 5.0)
    weight, other = _average(run, 2)
    assert (weight, other == identity) == (3.0, False)


def test_an_average_of_another_number_keeps_the_configured_one(run):
    assert _average(run, 2)[0] == 1.5
    assert average_name(2, 2) == AVERAGE
    assert _average(run, 1, average_name(1, 2))[0] == 2.0
    assert sorted(file.name for file in run.checkpoints.glob("*average*")) == [AVERAGE, "checkpoint_average_last1.pt"]
    found = finished_average(run, 2, Console(file=io.StringIO()))
    assert found == run.checkpoints / AVERAGE
    assert torch.load(found)["model"]["weight"].item() == 1.5


def test_the_average_is_used_after_its_epochs_were_removed(run):
    _, identity = _average(run, 2)
    for file in run.checkpoints.glob("checkpoint?.pt"):
        file.unlink()
    assert _average(run, 1, average_name(1, 2)) == (1.5, identity), "only the average is left"
    assert finished_average(run, 2, Console(file=io.StringIO())) == run.checkpoints / AVERAGE


def test_translate_uses_the_configured_average_and_makes_it_under_a_lock(run, monkeypatch):
    console = Console(file=io.StringIO())
    with run.evaluating(), pytest.raises(SharingError, match="is being evaluated by another process"):
        model_files._average(run, 2, console)
    assert not (run.checkpoints / AVERAGE).exists()
    _average(run, 1, average_name(1, 2))
    made = model_files._average(run, 2, console)
    assert torch.load(made)["model"]["weight"].item() == 1.5
    with run.evaluating():  # during a long evaluation
        assert model_files._average(run, 2, console) == made


@pytest.mark.parametrize("moment", ["before they are read", "before they are averaged"])
def test_checkpoints_deleted_by_a_training_are_reported_in_one_line(run, monkeypatch, moment):
    if moment == "before they are read":
        monkeypatch.setattr(averages, "sha256", lambda file: (file.unlink(), sha256(file)))
    else:
        monkeypatch.setattr(averages, "sha256", lambda file: (sha256(file), file.unlink())[0])
    with pytest.raises(SharingError) as caught:
        _average(run, 2)
    assert str(caught.value) == (
        f"{run.checkpoints / 'checkpoint1.pt'}: deleted during evaluation, probably by a running training "
        "(train.keep_last_epochs); try again, or wait until training has finished"
    )
    assert not list(run.checkpoints.glob("*average*"))


def test_a_checkpoint_that_is_damaged_is_not_called_deleted(run):
    (run.checkpoints / "checkpoint2.pt").write_bytes(b"half")
    with pytest.raises(SharingError, match=r"checkpoint2\.pt: not a readable checkpoint"):
        _average(run, 2)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"engine": "marian"}, "evaluate.engine: 'marian'; allowed: fairseq, ctranslate2"),
        (
            {"engine": "ctranslate2", "max_len_a": 1.5},
            "evaluate.max_len_a: 1.5; allowed with the engine fairseq only",
        ),
        ({"beam": 0}, "evaluate.beam must be an integer >= 1, got 0"),
        ({"average_last": 2.5}, "evaluate.average_last must be an integer >= 1, got 2.5"),
        ({"max_tokens": True}, "evaluate.max_tokens must be an integer >= 1, got True"),
        ({"lenpen": "long"}, "evaluate: length penalty lenpen must be a finite number, got 'long'"),
        ({"test_lenpen": {"newstest2014": "0.6"}}, "evaluate: length penalty newstest2014 must be a finite number"),
        ({"tokenize": "mosess"}, "tokenize: 'mosess'; allowed: 13a, char, flores101, flores200, intl, ja-mecab, "),
        ({"bean": 4}, "evaluate: unknown key 'bean'; allowed: average_last, engine, beam, "),
    ],
)
def test_bad_settings_are_named(block, message):
    with pytest.raises(SharingError) as caught:
        EvaluationSettings.of(block)
    assert str(caught.value).startswith(message)


def test_the_baseline_that_an_earlier_version_recorded_is_ignored():
    config = {"run": "a", "evaluate": {"beam": 4, "baseline": "vanilla"}}
    assert EvaluationSettings.of_run(config, {"lenpen": 0.5}) == EvaluationSettings(beam=4, lenpen=0.5)
    with pytest.raises(SharingError, match="evaluate: unknown key 'baseline'"):
        EvaluationSettings.of(config["evaluate"])


def test_null_removes_a_length_penalty_of_the_base():
    settings = EvaluationSettings.of({"test_lenpen": {"newstest2014": 0.6, "newstest2014_cleaned": None}})
    assert settings.test_lenpen == {"newstest2014": 0.6}


def test_step_is_done_only_with_the_same_inputs_and_output(tmp_path):
    output, inputs = tmp_path / "test.generate.txt", {"beam": 5, "checkpoints": {"checkpoint1.pt": "ab"}}
    output.write_text("H-0\t-1\tja\n")
    steps = Steps(tmp_path / "steps.json")
    assert not steps.is_done("test", inputs, output)
    steps.record("test", inputs, output)
    again = Steps(tmp_path / "steps.json")
    assert again.is_done("test", dict(reversed(inputs.items())), output)
    assert not again.is_done("test", {**inputs, "beam": 4}, output)
    assert not again.is_done("other", inputs, output)
    output.write_text("H-0\t-1\tnein\n")
    assert not again.is_done("test", inputs, output)
    output.unlink()
    assert not again.is_done("test", inputs, output)


def test_damaged_record_of_steps_is_named(tmp_path):
    (tmp_path / "steps.json").write_text("{")
    with pytest.raises(SharingError, match=r"steps\.json: not JSON"):
        Steps(tmp_path / "steps.json")
