import io

import pytest
import torch
from rich.console import Console

from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.evaluate import EvaluationSettings, average_last_epochs, last_epoch_checkpoints
from fairseq_sharing.evaluation.steps import Steps
from fairseq_sharing.experiment.run_directory import RunDirectory


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


def test_where_no_epoch_has_ended_the_checkpoints_within_it_count(tmp_path):
    _touch(tmp_path, "checkpoint_1_450.pt", "checkpoint_1_1000.pt", "checkpoint_1_500.pt", "checkpoint_last.pt")
    names = [file.name for file in last_epoch_checkpoints(tmp_path, 2)]
    assert names == ["checkpoint_1_500.pt", "checkpoint_1_1000.pt"]


def test_no_epoch_checkpoint_is_an_error(tmp_path):
    _touch(tmp_path, "checkpoint_last.pt")
    with pytest.raises(SharingError, match="no epoch checkpoint"):
        last_epoch_checkpoints(tmp_path, 10)


def test_an_average_is_taken_as_it_is_where_its_checkpoints_were_removed(tmp_path):
    run, steps = RunDirectory(tmp_path), Steps(tmp_path / "steps.json")
    run.checkpoints.mkdir()
    for epoch in (1, 2):
        torch.save({"model": {"weight": torch.tensor([float(epoch)])}}, run.checkpoints / f"checkpoint{epoch}.pt")
    averaged, names, _ = average_last_epochs(run, 2, steps, Console(file=io.StringIO()))
    for name in names:
        (run.checkpoints / name).unlink()
    told = Console(file=io.StringIO())
    assert average_last_epochs(run, 2, steps, told)[:2] == (averaged, ["checkpoint1.pt", "checkpoint2.pt"])
    assert "taken as it is, no epoch checkpoint is left" in told.file.getvalue()
    assert torch.load(averaged)["model"]["weight"].item() == 1.5


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"beam": 0}, "evaluate.beam must be a whole number from 1, got 0"),
        ({"average_last": 2.5}, "evaluate.average_last must be a whole number from 1, got 2.5"),
        ({"max_tokens": True}, "evaluate.max_tokens must be a whole number from 1, got True"),
        ({"lenpen": "long"}, "evaluate: length penalty lenpen must be a number, got 'long'"),
        ({"test_lenpen": {"newstest2014": "0.6"}}, "evaluate: length penalty newstest2014 must be a number"),
        ({"bean": 4}, "evaluate: unknown key 'bean'; allowed: average_last, beam, "),
    ],
)
def test_bad_settings_are_named(block, message):
    with pytest.raises(SharingError) as caught:
        EvaluationSettings.of(block)
    assert str(caught.value).startswith(message)


def test_a_length_penalty_of_a_base_is_left_out_by_null():
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
