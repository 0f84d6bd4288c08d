"""Runs that start from a trained model: the key ``from_trained`` of a study's row."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from sharing_cases import BY_NAME
from tiny_models import make_trainer, save, tensors, train_step

from fairseq_sharing import flags
from fairseq_sharing.checkpoints.files import load_checkpoint
from fairseq_sharing.checkpoints.tie import tie
from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.config import compose, find_study
from fairseq_sharing.experiment.run_directory import RunDirectory
from fairseq_sharing.training.from_trained import tied_file, write_tied
from fairseq_sharing.training.plan import Plan


@pytest.fixture
def source(data_dir, tmp_path):
    trainer = make_trainer(data_dir, BY_NAME["none"], arch="transformer")
    train_step(trainer)
    return save(trainer, tmp_path / "source-seed2.pt")


def configuration(source, **train):
    train = {"sharing": "custom", "layer_map": [0, 1, 0, 1, 0, 1], "depth_lora": 2, **train}
    from_trained = {"checkpoint": str(source).replace("seed2", "seed{seed}"), "init": "first", "fit_iterations": 1}
    return OmegaConf.create({"run": "tied", "seed": 2, "train": train, "from_trained": from_trained})


def test_the_source_of_the_seed_is_tied_once_with_the_options_of_the_run(source, tmp_path):
    run, config = RunDirectory(tmp_path / "run"), configuration(source)
    run.path.mkdir()
    write_tied(config, run)
    options = {"sharing": "custom", "layer_map": "0,1,0,1,0,1", "depth_lora": 2}
    expected = tie(load_checkpoint(source), options, "first", fit_iterations=1)["model"]
    file = tied_file(config, run)
    found = load_checkpoint(file)["model"]
    assert found["_extra_state"] == expected["_extra_state"]
    assert all(torch.equal(value, expected[name]) for name, value in tensors(found).items())
    before = file.stat().st_mtime_ns
    write_tied(config, run)
    assert file.stat().st_mtime_ns == before
    file.unlink()
    run.checkpoints.mkdir()
    (run.checkpoints / "checkpoint_last.pt").touch()
    write_tied(config, run)
    assert not file.exists(), "a run that has checkpoints resumes from them"


def test_a_source_that_does_not_fit_is_refused_with_its_path(source, tmp_path):
    with pytest.raises(SharingError, match=r"source-seed2\.pt: --depth-lora 99: the smallest matrix has rank 16"):
        write_tied(configuration(source, depth_lora=99), RunDirectory(tmp_path))
    with pytest.raises(SharingError, match=r"other-seed2\.pt"):
        write_tied(configuration(tmp_path / "other-seed2.pt"), RunDirectory(tmp_path))


def test_the_study_composes_and_its_runs_start_from_the_tied_file(tmp_path):
    study = find_study("from_trained")
    for row in study.rows:
        config = compose("from_trained", [f"row={row}", "seed=3"], check=flags.check)
        plan = Plan(config, RunDirectory(tmp_path / row), tmp_path, 1, False)
        words = plan.words()
        starts = f"{tmp_path / row / 'tied.pt'}" in words
        assert starts == ("--finetune-from-model" in words) == ("from_trained" in study.rows[row])
        assert ("--depth-lora" in words) == ("lora" in row)
    assert sum("from_trained" in row for row in study.rows.values()) == 7


def test_new_weights_need_no_file(tmp_path):
    config = OmegaConf.create({"train": {}})
    assert tied_file(config, RunDirectory(tmp_path)) is None
    write_tied(config, RunDirectory(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("{from_trained: {init: first}}", "from_trained.checkpoint: missing; allowed: a checkpoint or run directory"),
        (
            "{from_trained: {checkpoint: a, rule: b}}",
            "from_trained: unknown key 'rule'; allowed: checkpoint, init, align, fit_iterations",
        ),
        ("{from_trained: a.pt}", "from_trained: must be a mapping, got 'a.pt'"),
    ],
)
def test_a_malformed_row_is_refused(row, expected, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(f"data: toy\nrecipe: recipes/toy.yaml\nrows: {{one: {row}}}\nseeds: [1]\n")
    with pytest.raises(SharingError) as caught:
        find_study(file)
    assert expected in str(caught.value)
