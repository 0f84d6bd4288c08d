"""Word-level distillation with fairseq-train: ranks, schedules, resuming, export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fairseq_processes import PLUGIN, logged
from tiny_training import assert_same_bits, read_checkpoint

CRITERION = ["--criterion", "label_smoothed_cross_entropy_with_teacher", "--dropout", "0", "--no-epoch-checkpoints"]


@pytest.fixture(scope="module")
def words(trained) -> list[object]:
    return [*CRITERION, "--teacher", trained / "checkpoint2.pt", "--kd-temperature", "2"]


def _last(folder: Path) -> dict[str, torch.Tensor]:
    model = read_checkpoint(folder / "checkpoint_last.pt")["model"]
    return {name: value for name, value in model.items() if torch.is_tensor(value)}


def test_two_ranks_train_like_two_steps_per_update(train_on_ranks, words, tmp_path):
    weights, kept = [], []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        more = ["--update-freq", 2 // ranks, "--max-update", "3", "--disable-validation"]
        log = train_on_ranks(folder, ranks, *words, *more)
        weights.append(_last(folder))
        kept.append([float(entry["teacher_kl"]) for entry in logged(log, "teacher_kl") if "num_updates" in entry])
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-5)
    assert len(kept[0]) >= 3
    assert kept[1] == pytest.approx(kept[0], abs=2e-3)
    assert min(kept[0]) > 0.05


def test_a_schedule_changes_the_student_and_a_resumed_run_is_bit_equal(train, words, tmp_path):
    schedule = ["--task", "translation_sharing", "--sharing-schedule", "unshare", "--unshare-at", "3"]
    more = [*words, *schedule, "--save-interval-updates", "2", "--validate-interval-updates", "100"]
    train(tmp_path / "whole", *more, "--max-update", "5")
    for most in ("2", "5"):
        train(tmp_path / "resumed", *more, "--max-update", most)
    assert_same_bits(*(tmp_path / name / "checkpoint_last.pt" for name in ("whole", "resumed")))
    names = _last(tmp_path / "whole")
    assert {"encoder.layers.3.fc1.weight", "decoder.layers.3.fc1.weight"} <= names.keys(), "untied"
    assert not any("teacher" in name for name in names)


def test_the_plain_export_names_stock_fairseq_s_criterion(commands, train, words, tmp_path, data):
    train(tmp_path / "student", *words, "--max-update", "1", "--disable-validation")
    stock = tmp_path / "stock.pt"
    commands.run(
        "fairseq_sharing", "export", tmp_path / "student" / "checkpoint_last.pt", "--materialize", "--output", stock
    )
    criterion = read_checkpoint(stock)["cfg"]["criterion"]
    assert criterion["_name"] == "label_smoothed_cross_entropy"
    assert not {"teacher", "teacher_data", "kd_alpha", "kd_temperature"} & criterion.keys()
    assert criterion["label_smoothing"] == 0.1


def test_a_missing_teacher_is_one_line(train, tmp_path):
    done = train(tmp_path, *CRITERION, "--teacher", tmp_path / "none.pt", status=None)
    (line,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert line.endswith(f"--teacher {tmp_path / 'none.pt'}: no such file; allowed: a checkpoint")


def test_the_validation_loss_of_the_student_can_be_measured(commands, train, words, tmp_path, data):
    train(tmp_path, *words, "--max-update", "2")
    checkpoint = tmp_path / "checkpoint_last.pt"
    done = commands.run(
        *("fairseq_cli.validate", data, "--user-dir", PLUGIN, "--path", checkpoint, "--task", "translation"),
        *("--batch-size", "24", "--log-format", "json", "--cpu"),
    )
    assert '"valid_teacher_kl"' in done.stdout + done.stderr
