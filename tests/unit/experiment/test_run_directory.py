"""Run directories: the record, the locks and the records of the log."""

from __future__ import annotations

import subprocess
import sys

import pytest
from omegaconf import OmegaConf
from run_configuration import CONFIG

from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.run_directory import RunDirectory, parse_log_line


def test_config_and_record_come_back_as_written(run):
    assert OmegaConf.to_container(run.config()) == CONFIG
    assert run.record() == {}
    run.write_record({"run": "ä", "seed": 1})
    assert run.record() == {"run": "ä", "seed": 1}


def test_directory_without_configuration_is_refused(tmp_path):
    with pytest.raises(SharingError, match=r"elsewhere: not a run directory .* config\.yaml is missing"):
        RunDirectory(tmp_path / "elsewhere").config()


def test_broken_record_is_refused_by_name(run):
    run.record_file.write_text("{")
    with pytest.raises(SharingError, match=r"run\.json: not JSON"):
        run.record()


def test_a_run_is_trained_by_one_process_at_a_time(run):
    with run.locked(), pytest.raises(SharingError, match="is being trained by another process"), run.locked():
        pass
    with run.locked():
        pass


def test_a_training_keeps_the_lock_when_its_starter_is_gone(run):
    with run.locked() as descriptor:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(descriptor,))
    try:
        with pytest.raises(SharingError, match="is being trained"), run.locked():
            pass
    finally:
        child.communicate(b"\n")
    with run.locked():
        pass


def test_a_run_is_evaluated_by_one_process_at_a_time_while_it_trains(run):
    with run.locked(), run.evaluating():
        with pytest.raises(SharingError) as caught, run.evaluating():
            pass
        with pytest.raises(SharingError, match="is being trained"), run.locked():
            pass
    assert str(caught.value) == f"{run.path}: is being evaluated by another process; try again when it has ended"
    with run.evaluating():
        pass


def test_what_a_killed_process_left_half_written_is_removed_by_the_next(run):
    run.checkpoints.mkdir()
    run.evaluation.mkdir()
    of_training = [run.path / "run.json.0a1b2c3d.tmp", run.checkpoints / "checkpoint2.pt.tmp"]
    of_evaluation = [
        run.path / "result.json.0a1b2c3d.tmp",
        run.evaluation / "test.generate.txt.0a1b2c3d.tmp",
        run.checkpoints / "checkpoint_average.pt.0a1b2c3d.tmp",
    ]
    for file in (*of_training, *of_evaluation):
        file.touch()
    with run.evaluating():
        assert not any(file.exists() for file in of_evaluation)
        assert all(file.exists() for file in of_training)
    with run.locked():
        assert not of_training[0].exists()
    assert sorted(file.name for file in run.path.glob("*.*")) == [".evaluate.lock", ".lock", "config.yaml"]


def test_log_lines_give_their_kind_and_values():
    line = '2026-01-01 00:00:00 | INFO | train_inner | {"epoch": 1, "loss": "3.5"}\n'
    assert parse_log_line(line) == ("train_inner", {"epoch": 1, "loss": "3.5"})
    assert parse_log_line('{"epoch": 1}\n') == ("", {"epoch": 1})
    assert parse_log_line("2026-01-01 00:00:00 | INFO | fairseq_cli.train | {'_name': None}\n") is None
    assert parse_log_line("Traceback\n") is None


def test_log_records_skip_everything_else(run):
    assert list(run.log_records()) == []
    run.log_file.write_text('text\nt | INFO | train | {"epoch": 1}\n{broken}\nt | INFO | valid | {"epoch": 1}\n')
    assert [kind for kind, _ in run.log_records()] == ["train", "valid"]
