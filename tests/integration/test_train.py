"""``fairseq-sharing train`` with the real fairseq-train: files, resume, errors, data parallel, signals."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from fairseq_processes import fork_trainings
from words_corpus import call, make_place

from fairseq_sharing.experiment.run_directory import RunDirectory


@pytest.fixture(scope="module")
def place(tmp_path_factory, commands) -> Path:
    """A directory with data/words and words.yaml."""
    return make_place(tmp_path_factory.mktemp("train"), commands)


@pytest.fixture(scope="module")
def train(place, commands):
    """Run the command; fork instead of importing torch and fairseq again. Return its stderr."""

    def run(*words: str, status: int = 0) -> str:
        command = ["fairseq_sharing", "train", "words.yaml", *words]
        done = commands.run(*command, status=status, cwd=place, before=fork_trainings)
        assert done.stdout == ""
        return done.stderr

    return run


@pytest.fixture(scope="module")
def trained(place) -> tuple[Path, str]:
    """A finished run of 6 updates, made by separate processes, and the command's stderr."""
    done = call("-m", "fairseq_sharing", "train", "words.yaml", cwd=place)
    assert done.stdout == ""
    return place / "runs" / "words" / "words-seed1", done.stderr


def _words_per_batch(run: RunDirectory) -> list[int]:
    return [float(record["wpb"]) for kind, record in run.log_records() if kind == "train_inner"]


def test_run_keeps_configuration_record_log_curves_and_checkpoints(trained):
    path, told = trained
    run = RunDirectory(path)
    record = run.record()
    assert (record["run"], record["source_lang"], record["target_lang"]) == ("words", "en", "de")
    assert record["exit_status"] == 0
    assert record["finished"] >= record["started"]
    assert record["peak_memory_bytes"] > 100 * 2**20, "a process that imported torch takes more than 100 MiB"
    assert record["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert record["tokens_per_batch"] == 56
    assert run.config().train.sharing == "cycle_rev"
    assert {"checkpoint_1_3.pt", "checkpoint_last.pt"} <= {file.name for file in run.checkpoints.iterdir()}
    assert list(run.tensorboard.glob("**/events*"))
    assert [record["num_updates"] for kind, record in run.log_records() if kind == "train_inner"][-1] == "6"
    assert told.startswith("$ fairseq-train data/words/bin ")
    assert "world size 1 (CPU process), 56 tokens per batch = 56 tokens x 1 device x update_freq 1" in told
    assert "finished; 1 epoch, 6 updates" in told


def test_finished_run_is_unchanged_until_more_updates_are_requested(trained, train):
    path, _ = trained
    before = RunDirectory(path).record()
    assert "nothing to do" in train()
    assert RunDirectory(path).record() == before
    told = train("train.max_update=9")
    assert "resuming from its last checkpoint" in told
    assert "9 updates" in told
    updates = [int(record["num_updates"]) for kind, record in RunDirectory(path).log_records() if kind == "train_inner"]
    assert updates == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    record = RunDirectory(path).record()
    assert (record["starts"], record["started"]) == (2, before["started"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.lr=0.5"], "was started with train.lr=0.001, now 0.5"),
        (["train.update_freq=2"], "was started with 56 tokens per batch"),
        (["train.max_update=9", "--data", "nowhere"], "data directory nowhere: no binarized data"),
    ],
)
def test_run_under_another_recipe_is_refused_in_one_line(trained, train, words, message):
    (line,) = train(*words, status=2).splitlines()
    assert line.startswith("fairseq-sharing train: error: ")
    assert message in line


def test_mistake_that_fairseq_finds_is_reported_in_one_line_and_can_be_corrected(place, train):
    told = train("run=wrong", "train.valid_subset=other", status=2)
    assert told.splitlines()[-1] == (
        "fairseq-sharing train: error: fairseq-train failed: FileNotFoundError: Dataset not found: other"
        " (data/words/bin) (log: runs/words/wrong-seed1/train.log)"
    )
    assert "Traceback" not in told
    assert "finished" in train("run=wrong", "train.max_update=1")


def test_mistake_that_the_parser_or_the_model_finds_starts_nothing(place, train):
    (line,) = train("run=early", "train.unique_layers=9", status=2).splitlines()
    assert line == (
        "fairseq-sharing train: error: override: train.unique_layers: --unique-layers must be between 1 and the number"
        " of layers (4), got 9"
    )
    assert not (place / "runs" / "words" / "early-seed1").exists()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs 2 CPU cores")
def test_two_processes_see_twice_the_words_per_batch(trained, train, place):
    told = train("run=parallel", "--devices", "2")
    assert "world size 2 (CPU processes), 112 tokens per batch" in told
    assert [line.partition(":")[0] for line in told.splitlines() if line.startswith("  rank")] == [
        "  rank 0",
        "  rank 1",
    ]
    parallel = RunDirectory(place / "runs" / "words" / "parallel-seed1")
    one = _words_per_batch(RunDirectory(trained[0]))
    assert set(one) == {56}
    assert set(_words_per_batch(parallel)) == {112}
    assert parallel.record()["world_size"] == 2


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_training_and_the_next_start_resumes(place, commands, train, number, status):
    name = number.name.lower()
    words = ["fairseq_sharing", "train", "words.yaml", f"run={name}"]
    command = commands.start(*words, "train.max_update=100000", cwd=place, before=fork_trainings)
    run = RunDirectory(place / "runs" / "words" / f"{name}-seed1")
    command.wait_until((run.checkpoints / "checkpoint_last.pt").is_file)
    os.kill(command.process.pid, number)
    command.wait(status, patience=60)
    record = json.loads(run.record_file.read_text())
    assert record["finished"] is None
    assert record["exit_status"] != 0
    with run.locked():
        pass  # no process is left that trains
    if number == signal.SIGTERM:
        return
    updates = max(int(r["num_updates"]) for kind, r in run.log_records() if kind == "train_inner")
    told = train(f"run={name}", f"train.max_update={updates + 3}")
    assert "resuming from its last checkpoint" in told
