"""``run.json`` says how a training ended and how long it took, whatever happens to the launcher."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time

import pytest

from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment import environment, run_directory
from fairseq_sharing.experiment.config import compose
from fairseq_sharing.experiment.run_directory import UNWATCHED_SECONDS, RunDirectory
from fairseq_sharing.interruption import interruptible
from fairseq_sharing.terminal import Console
from fairseq_sharing.training import launch, processes
from fairseq_sharing.training.launch import train
from fairseq_sharing.training.plan import Plan, make_plan
from fairseq_sharing.training.processes import Process

CPU = {"kind": "cpu", "name": "cpu", "count": 4, "memory_bytes": 1}


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Start trainings that run a Python program instead of fairseq-train; remember their processes."""
    monkeypatch.setattr(environment, "device", lambda: CPU)
    monkeypatch.setattr(processes, "POLL_SECONDS", 0.01)
    (tmp_path / "data" / "bin").mkdir(parents=True)
    (tmp_path / "data" / "manifest.json").write_text('{"source_lang": "en", "target_lang": "de"}')
    running: list[Process] = []

    def start(program: str) -> tuple[Plan, RunDirectory]:
        def spawn(command, output, inherited, variables):
            process = Process([sys.executable, "-c", program], stdout=output, stderr=output, start_new_session=True)
            running.append(process)
            return process

        monkeypatch.setattr(launch, "spawn", spawn)
        plan = make_plan(
            compose("toy", ["row=vanilla", "train.no_save=true"]), data=tmp_path / "data", run=tmp_path / "run"
        )
        return plan, plan.run

    start.running = running
    return start


def run(plan: Plan) -> None:
    train(plan, Console(file=io.StringIO()))


def gone(process: Process) -> bool:
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_success_failure_and_death_are_recorded(started):
    for program, status, message in (
        ("pass", 0, None),
        ("raise SystemExit(3)", 3, "exit status 3"),
        ("import os; os.kill(os.getpid(), 9)", -9, "killed by SIGKILL"),
        ("raise OSError(28, 'No space left on device', 'x.pt')", 1, "No space left on device: 'x.pt'"),
    ):
        plan, directory = started(program)
        if message is None:
            run(plan)
        else:
            with pytest.raises(SharingError, match=message):
                run(plan)
        record = directory.record()
        assert record["exit_status"] == status
        assert (record["finished"] is not None) == (status == 0)
        assert 0 <= record["train_seconds"] < 60


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError("x")])
def test_a_launcher_that_fails_ends_its_training_and_says_so(started, monkeypatch, error):
    plan, directory = started("import time; time.sleep(60)")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("fairseq_sharing.training.log_tail.LogTail.read", fail)
    with pytest.raises(type(error)):
        run(plan)
    assert directory.record()["exit_status"] == launch.STATUS_OF_FAILURE
    assert directory.record()["finished"] is None
    assert gone(started.running[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_forwarded_and_recorded(started, number):
    plan, directory = started(f"import os, signal, time; os.kill({os.getpid()}, {int(number)}); time.sleep(60)")
    with pytest.raises((KeyboardInterrupt, SystemExit)), interruptible():
        run(plan)
    assert directory.record()["exit_status"] == -number
    assert gone(started.running[0])


def test_the_time_is_written_while_training(started, monkeypatch):
    """So that it is known if the launcher is killed."""
    monkeypatch.setattr(launch, "RECORD_SECONDS", 0.05)
    plan, directory = started("import time; time.sleep(60)")
    read = []

    def look(*_: object) -> None:
        record = json.loads(directory.record_file.read_text())
        if record["train_seconds"] > 0.1:
            read.append(record)
            started.running[0].terminate()

    monkeypatch.setattr("fairseq_sharing.training.log_tail.LogTail.read", look)
    with pytest.raises(SharingError, match="killed by SIGTERM"):
        run(plan)
    assert read[0]["exit_status"] is None
    assert read[0]["finished"] is None


def test_the_time_of_a_training_that_went_on_without_its_launcher_is_null(tmp_path):
    directory = RunDirectory(tmp_path)
    record = {"run": "a", "train_seconds": 7.5, "exit_status": None, "finished": None}
    directory.write_record(record)
    directory.log_file.write_text("")
    written = time.time()
    os.utime(directory.record_file, (written, written))
    os.utime(directory.log_file, (written, written + UNWATCHED_SECONDS - 5))
    assert directory.record()["train_seconds"] == 7.5
    os.utime(directory.log_file, (written, written + UNWATCHED_SECONDS + 5))
    assert directory.record()["train_seconds"] is None
    directory.write_record({**record, "exit_status": 0})
    os.utime(directory.record_file, (written, written))
    assert directory.record()["train_seconds"] == 7.5
    assert run_directory.RECORD_SECONDS < UNWATCHED_SECONDS / 2


def test_an_unknown_time_stays_unknown(tmp_path):
    directory = RunDirectory(tmp_path)
    clock = launch._Clock(directory, {"train_seconds": None})
    clock.stop()
    assert json.loads(directory.record_file.read_text()) == {"train_seconds": None}
