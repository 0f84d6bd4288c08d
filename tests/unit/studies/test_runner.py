"""A study's runner: slots, failures, kills, signals, budgets and several runners at once, with stand-ins for runs."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import stand_in_run
import stand_in_study
from stand_in_run import UPDATES

from fairseq_sharing.studies import runner, slots
from fairseq_sharing.studies.states import State, read_state

ROOT = Path(__file__).resolve().parents[3]
HELPERS = ROOT / "tests" / "helpers"
STUDY = """
question: Does the runner work?
data: toy
recipe: recipes/toy.yaml
rows:
  vanilla: {train: {sharing: none}}
  cycle: {train: {sharing: cycle, unique_layers: 2, encoder_layers: 4, decoder_layers: 4}}
  copy: {map_of: cycle, train: {sharing: custom}}
seeds: [1, 2]
overrides: [train.max_epoch=1]
compare: {baseline: vanilla}
"""


@pytest.fixture
def study(tmp_path, monkeypatch) -> str:
    """A study of six runs in an empty current directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("python_words", "_LOOK_SECONDS"):
        monkeypatch.setattr(runner, name, getattr(runner, name))
    (tmp_path / "tiny.yaml").write_text(STUDY)
    return "tiny.yaml"


def start(*words: object) -> subprocess.Popen:
    """Start a runner in a process of its own."""
    variables = {**os.environ, "PYTHONPATH": f"{ROOT}:{HELPERS}"}
    command = [sys.executable, HELPERS / "stand_in_study.py", *map(str, words)]
    return subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True)


def trained_once(plan) -> None:
    """Every update of every run was made once, and every run is finished."""
    for run in plan.runs:
        assert (run.directory.path / "updates").read_text().split() == [str(n + 1) for n in range(UPDATES)], run.name
        assert read_state(plan, run).state == State.FINISHED


def meet(plan) -> None:
    """Let each of the first two runs train once the other does: alone, both would fail."""
    for run in plan.runs[:2]:
        run.directory.path.mkdir(parents=True)
        (run.directory.path / "meet").touch()


def processes() -> list[psutil.Process]:
    """Return the stand-ins that run in the current directory."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        try:
            if stand_in_run.__file__ in (process.info["cmdline"] or ()) and process.cwd() == str(Path.cwd()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_runs_fill_the_slots_and_no_more(study):
    class Watched(runner.StudyRunner):
        def _look(self):
            assert len(self._jobs) <= 2
            super()._look()

    made, plan = stand_in_study.make_runner(study, 2, slots=slots.cpu_slots(2, [0, 1]))
    made.__class__ = Watched
    meet(plan)
    assert made.run() == {}
    trained_once(plan)
    environments = [json.loads((run.directory.path / "environment.json").read_text()) for run in plan.runs]
    assert {environment["OMP_NUM_THREADS"] for environment in environments} == {"1"}
    assert {tuple(environment["cores"]) for environment in environments} == {(0,), (1,)}
    copies = [run for run in plan.runs if run.row == "copy"]
    for run in copies:  # trained after the run whose map it needs
        origin = plan.origin(run)
        assert origin.record_file.stat().st_mtime <= (run.directory.path / "updates").stat().st_mtime


def test_a_run_that_fails_holds_up_no_other_and_is_listed_with_its_error(study):
    made, plan = stand_in_study.make_runner(study, 2)
    broken = Path("runs/tiny/cycle-seed1")
    broken.mkdir(parents=True)
    (broken / "fail").touch()
    failed = made.run()
    assert failed == {
        "cycle, seed 1": "fairseq-train failed: something is wrong",
        "copy, seed 1": "needs the map of cycle, seed 1, which failed",
    }
    states = {run.name: read_state(plan, run).state for run in plan.runs}
    assert states["cycle, seed 1"] == State.FAILED
    assert [name for name, state in states.items() if state == State.FINISHED] == [
        *("vanilla, seed 1", "vanilla, seed 2", "cycle, seed 2", "copy, seed 2")
    ]
    (broken / "fail").unlink()
    again, plan = stand_in_study.make_runner(study, 2)
    assert again.run() == {}
    trained_once(plan)


def test_a_killed_runner_leaves_no_process_and_resumes(study):
    moments = random.Random(1)
    plan = stand_in_study.make_runner(study, 2)[1]
    for _ in range(5):
        process = start(study, 2)
        time.sleep(moments.uniform(0.8, 2.2))
        process.kill()
        process.wait()
        end = time.monotonic() + 20
        while processes() and time.monotonic() < end:
            time.sleep(0.05)
        assert not processes()
    assert start(study, 2).wait(120) == 0
    trained_once(plan)


def test_two_runners_share_a_study(study):
    plan = stand_in_study.make_runner(study, 2)[1]
    meet(plan)
    both = [start(study, 1), start(study, 1)]
    assert [process.wait(120) for process in both] == [0, 0]
    trained_once(plan)
    for process in both:
        assert "training on" in process.stderr.read(), "each has trained some of the runs"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_lets_the_runs_write_their_state(study, number, status):
    Path("hold").touch()
    process = start(study, 2)
    while not list(Path().glob("runs/tiny/*/updates")):
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(60) in (status, -number, 1)
    assert "waiting for" in process.stderr.read()
    assert not processes()
    made, plan = stand_in_study.make_runner(study, 2)
    states = [read_state(plan, run).state for run in plan.runs]
    assert State.STOPPED in states
    assert State.FINISHED not in states
    Path("hold").unlink()
    assert made.run() == {}
    trained_once(plan)


def test_a_budget_stops_in_time(study):
    Path("hold").touch()
    made, plan = stand_in_study.make_runner(study, 1, budget=2.4)
    began = time.monotonic()
    assert made.run() == {}
    assert time.monotonic() - began < 60, "without a budget, it would wait for ever"
    assert made.unfinished() == [run.name for run in plan.runs]
    assert not processes()
    Path("hold").unlink()
    again, plan = stand_in_study.make_runner(study, 2)
    assert again.run() == {}
    trained_once(plan)


def test_a_full_disk_starts_nothing(study, monkeypatch):
    monkeypatch.setattr(runner.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2**20}))
    made, plan = stand_in_study.make_runner(study, 2, rows=("vanilla",))
    assert made.run() == {run.name: f"{run.directory.path}: less than 1 GiB of free disk space" for run in plan.runs}
    assert not Path("started").exists()


def test_a_killed_run_is_tried_again_once(study, monkeypatch):
    made, _ = stand_in_study.make_runner(study, 1, rows=("vanilla",), seeds=(1,))
    kill = "import os; os.kill(os.getpid(), 9)"
    monkeypatch.setattr(runner, "python_words", lambda command: [sys.executable, "-c", kill])
    assert made.run() == {"vanilla, seed 1": "killed by SIGKILL"}
    assert made._tries == {"vanilla, seed 1": 2}
