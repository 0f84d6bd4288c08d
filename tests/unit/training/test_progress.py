"""The progress of a training: within an epoch, on a terminal and elsewhere."""

import io

from omegaconf import OmegaConf
from rich.console import Console

from fairseq_sharing.training.progress import TrainingProgress


def test_time_left_after_going_on_is_that_of_this_start(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("fairseq_sharing.training.progress.time.monotonic", lambda: now[0])
    output = io.StringIO()
    config = OmegaConf.create({"train": {"max_epoch": 10, "log_interval": 20}})
    progress = TrainingProgress(Console(file=output, width=200), "a", config)
    for update in (820, 840, 860, 880, 900):
        record = {"epoch": 9, "update": update / 100, "num_updates": update, "loss": 4}
        progress.update("train_inner", record)
    now[0] = 60
    progress.update("valid", {"epoch": 9, "valid_loss": 3})
    assert output.getvalue().rstrip().endswith("| 1:00, about 1:00 left"), "a hundred updates a minute"


def test_progress_within_an_epoch_is_a_line_a_minute(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("fairseq_sharing.training.progress.time.monotonic", lambda: now[0])
    output = io.StringIO()
    config = OmegaConf.create({"train": {"max_epoch": 2, "log_interval": 10}})
    progress = TrainingProgress(Console(file=output, width=200), "a", config)
    for update in range(10, 110, 10):  # one epoch of 100 updates in 200 seconds
        now[0] += 20
        progress.update("train_inner", {"epoch": 1, "update": update / 100, "num_updates": update, "loss": 4, "wps": 9})
    progress.update("valid", {"epoch": 1, "valid_loss": 3})
    lines = output.getvalue().splitlines()
    assert lines == [
        "  epoch 1/2, 30% | loss 4.000 | 9 tokens/s | update 30 | 1:00, about 5:40 left",
        "  epoch 1/2, 60% | loss 4.000 | 9 tokens/s | update 60 | 2:00, about 4:40 left",
        "  epoch 1/2, 90% | loss 4.000 | 9 tokens/s | update 90 | 3:00, about 3:40 left",
        "  epoch 1/2 | loss 4.000, valid 3.000 | 9 tokens/s | update 100 | 3:20, about 3:20 left",
    ]


def test_progress_on_a_terminal_shows_the_part_of_the_epoch():
    output = io.StringIO()
    config = OmegaConf.create({"train": {"max_update": 1000}})
    progress = TrainingProgress(Console(file=output, width=200, force_terminal=True), "a", config)
    with progress:
        progress.update("train_inner", {"epoch": 3, "update": 2.25, "num_updates": 900, "loss": 4, "wps": 9})
    assert "epoch 3, 25% | loss 4.000" in output.getvalue()
    assert "90%" in output.getvalue()
