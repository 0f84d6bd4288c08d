"""The fairseq-train commands of a plan, and what the log tells while they run."""

from __future__ import annotations

import io
import json
import sys

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from fairseq_sharing.errors import SharingError
from fairseq_sharing.training import environment
from fairseq_sharing.training.config import compose
from fairseq_sharing.training.launch import Process, _wait, make_plan, train
from fairseq_sharing.training.log_tail import LogTail
from fairseq_sharing.training.progress import TrainingProgress

CPU = {"kind": "cpu", "name": "cpu", "count": 4, "memory_bytes": 1}
GPUS = {"kind": "cuda", "name": "gpu", "count": 4, "memory_bytes": 80 * 1024**3}


@pytest.fixture(params=[CPU], ids=["cpu"])
def machine(request, monkeypatch):
    monkeypatch.setattr(environment, "device", lambda: request.param)
    monkeypatch.setattr(environment, "cpu_cores", lambda: 4)


def _flag(command, name):
    return command[command.index(name) + 1]


@pytest.mark.usefixtures("machine")
def test_plan_names_data_run_and_seed(tmp_path):
    plan = make_plan(compose("toy/vanilla.yaml", ["seed=3"]), runs=tmp_path, data=tmp_path / "d")
    (command,) = plan.commands()
    assert command[:2] == ["fairseq-train", str(tmp_path / "d" / "bin")]
    assert _flag(command, "--save-dir") == str(tmp_path / "toy" / "vanilla-seed3" / "checkpoints")
    assert _flag(command, "--seed") == "3"
    assert _flag(command, "--distributed-world-size") == "1"
    assert "--cpu" in command


@pytest.mark.parametrize(("target", "flags"), [("de", ["--source-lang", "--target-lang"]), ("", [])])
@pytest.mark.usefixtures("machine")
def test_languages_are_those_of_the_data_and_a_language_model_has_none(tmp_path, target, flags):
    (tmp_path / "manifest.json").write_text(json.dumps({"source_lang": "en", "target_lang": target}))
    (tmp_path / "small.yaml").write_text("dataset: mine\ntrain: {arch: transformer_sharing, max_tokens: 100}\n")
    (command,) = make_plan(compose(tmp_path / "small.yaml"), runs=tmp_path, data=tmp_path).commands()
    assert [flag for flag in ("--source-lang", "--target-lang") if flag in command] == flags


@pytest.mark.usefixtures("machine")
def test_cpu_processes_are_told_rank_size_and_meeting_point():
    plan = make_plan(compose("toy/vanilla.yaml"), devices=2)
    commands = plan.commands()
    assert [_flag(command, "--distributed-rank") for command in commands] == ["0", "1"]
    assert len({_flag(command, "--distributed-init-method") for command in commands}) == 1
    for command in commands:
        assert _flag(command, "--distributed-world-size") == "2"
        assert _flag(command, "--distributed-backend") == "gloo"
        assert _flag(command, "--ddp-backend") == "legacy_ddp"
        assert "--distributed-no-spawn" in command


@pytest.mark.parametrize("machine", [GPUS], indirect=True)
@pytest.mark.usefixtures("machine")
def test_gpus_are_all_used_and_started_by_fairseq():
    plan = make_plan(compose("toy/vanilla.yaml"))
    (command,) = plan.commands()
    assert _flag(command, "--distributed-world-size") == "4"
    assert "--cpu" not in command
    assert plan.batch().endswith("x 4 devices x update_freq 1")


@pytest.mark.usefixtures("machine")
def test_tokens_per_batch_sets_update_freq():
    config = compose("toy/vanilla.yaml", ["tokens_per_batch=16384", "train.max_tokens=4096"])
    plan = make_plan(config, devices=2)
    assert _flag(plan.commands()[0], "--update-freq") == "2"
    assert plan.batch() == "16,384 tokens per batch = 4,096 tokens x 2 devices x update_freq 2"


@pytest.mark.parametrize("devices", [0, 5])
@pytest.mark.usefixtures("machine")
def test_more_devices_than_there_are_is_refused(devices):
    with pytest.raises(SharingError, match=f"--devices must be between 1 and 4 .* got {devices}"):
        make_plan(compose("toy/vanilla.yaml"), devices=devices)


@pytest.mark.usefixtures("machine")
def test_missing_data_names_the_command_that_makes_it(tmp_path):
    plan = make_plan(compose("toy/vanilla.yaml"), runs=tmp_path, data=tmp_path / "none")
    with pytest.raises(SharingError, match=r"fairseq-sharing prepare toy --out .*none"):
        train(plan, Console(file=io.StringIO()))


@pytest.fixture
def follower(tmp_path):
    output = io.StringIO()
    progress = TrainingProgress(
        Console(file=output, width=200), "a", OmegaConf.create({"train": {"max_epoch": 2, "max_update": 0}})
    )
    log = tmp_path / "train.log"
    log.write_text('t | INFO | train | {"epoch": 9}\n')
    return LogTail(log, progress), log, output


def test_progress_outside_a_terminal_is_a_line_an_epoch(follower):
    tail, log, output = follower
    with log.open("a") as stream:
        stream.write('t | INFO | train_inner | {"epoch": 1, "update": 0.9, "num_updates": "90", "loss": "4", "wps": "1')
        stream.flush()
        tail.read()
        assert output.getvalue() == ""
        stream.write('234.5"}\nt | INFO | valid | {"epoch": 1, "valid_loss": "3.21", "valid_bleu": "12.3"}\n')
    tail.read()
    (line,) = output.getvalue().splitlines()
    assert "epoch 1/2 | loss 4.000, valid 3.210, BLEU 12.30 | 1,234 tokens/s | update 90 | " in line
    assert "left" in line


def test_summary_gives_what_was_measured(follower):
    tail, log, _ = follower
    assert tail.summary() == "it had no more updates to make"
    with log.open("a") as stream:
        stream.write('t | INFO | valid | {"epoch": 2, "valid_loss": "3.2"}\n')
        stream.write('t | INFO | train | {"epoch": 2, "train_num_updates": "1540", "train_gb_free": "70.5",')
        stream.write(' "train_wpb": "3949.2", "train_wps": "7000"}\n')
    tail.read()
    assert tail.summary() == (
        "2 epochs, 1,540 updates, valid loss 3.200; measured 3,949 target tokens per batch,"
        " 7,000 target tokens/s in the last epoch"
    )
    assert tail.peak_gpu_bytes(80 * 1024**3) == int(9.5 * 1024**3)


@pytest.mark.parametrize(
    ("lines", "status", "message"),
    [
        ("fairseq-train: error: --unique-layers must be ...\n", 1, "--unique-layers must be ..."),
        ("usage: train.py\ntrain.py: error: unrecognized arguments: --x\n", 2, "unrecognized arguments: --x"),
        ("Traceback (most recent call last):\n  File\nRuntimeError: no\n[W1] late\n", 1, "RuntimeError: no"),
        ("2026-01-01 00:00:00 | INFO | a | b\n", 3, "exit status 3"),
        ("", -9, "ended by SIGKILL (out of memory?)"),
    ],
)
def test_failure_is_told_in_fairseqs_own_line(follower, lines, status, message):
    tail, log, _ = follower
    with log.open("a") as stream:
        stream.write(lines)
    tail.read()
    assert tail.error(status) == message


def test_a_failing_rank_ends_the_others(follower):
    tail, _, _ = follower
    words = [[sys.executable, "-c", code] for code in ("import time; time.sleep(60)", "raise SystemExit(3)")]
    processes = [Process(word, start_new_session=True) for word in words]
    record = {"peak_memory_bytes": 0}
    failed = _wait(processes, record, tail, [])
    assert failed is processes[1]
    assert [process.returncode for process in processes] == [-15, 3]
    assert record["peak_memory_bytes"] > 1024**2
