"""Slots of a machine: disjoint cores, GPUs, and CUDA MPS where it is installed."""

from __future__ import annotations

import dataclasses
import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.config import find_study
from fairseq_sharing.experiment.run_directory import RunDirectory
from fairseq_sharing.studies import mps, slots
from fairseq_sharing.studies.plan import StudyPlan

GIB = 2**30


@pytest.fixture
def plan(tmp_path, monkeypatch) -> StudyPlan:
    monkeypatch.chdir(tmp_path)
    return StudyPlan(find_study("toy"), "toy", seeds=(1, 2, 3, 4))


def test_cpu_slots_are_disjoint_and_have_equal_threads():
    made = slots.cpu_slots(3, [0, 1, 2, 3, 5, 6, 7])
    assert [slot.cores for slot in made] == [{0, 1}, {2, 3}, {5, 6}]
    assert {slot.variables["OMP_NUM_THREADS"] for slot in made} == {"2"}
    assert made[1].name == "cores 2, 3"
    assert slots.cpu_slots(1, [4], processes=2)[0].variables == {}, "train divides the threads among its processes"


def test_gpu_slots_share_or_combine_gpus(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    visible = lambda made: [slot.variables["CUDA_VISIBLE_DEVICES"] for slot in made]  # noqa: E731
    assert visible(slots.gpu_slots(4, 2, 1)) == ["0", "1", "0", "1"]
    assert visible(slots.gpu_slots(2, 4, 2)) == ["0,1", "2,3"]
    assert visible(slots.gpu_slots(1, 3, 2)) == ["0,1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-abc")
    assert visible(slots.gpu_slots(2, 2, 1)) == ["5", "GPU-abc"]


def test_automatic_cpu_jobs_depend_on_cores_memory_and_runs(plan):
    assert slots.automatic_cpu_jobs(plan, 2, 64 * GIB) == 2
    assert slots.automatic_cpu_jobs(plan, 32, 64 * GIB) == 8, "one per run"
    assert slots.automatic_cpu_jobs(plan, 32, 8 * GIB) == 3, "2 GiB each before a run has finished"
    for run in plan.runs[:1]:
        RunDirectory(run.directory.path).write_record({"exit_status": 0, "peak_memory_bytes": GIB})
    assert slots.automatic_cpu_jobs(plan, 32, 8 * GIB) == 7, "as measured"


def test_automatic_gpu_jobs_need_mps_and_memory(plan, monkeypatch):
    monkeypatch.setattr(mps, "is_available", lambda: False)
    assert slots.automatic_gpu_jobs(plan, 2, 16, 80 * GIB) == 2
    monkeypatch.setattr(mps, "is_available", lambda: True)
    assert slots.automatic_gpu_jobs(plan, 1, 4, 80 * GIB) == 4, "one per launching core"
    for run in plan.runs:
        RunDirectory(run.directory.path).write_record({"exit_status": 0, "peak_memory_bytes": 20 * GIB})
    assert slots.automatic_gpu_jobs(plan, 1, 16, 80 * GIB) == 3


def test_too_many_jobs_are_refused(plan, monkeypatch):
    monkeypatch.setattr(slots.environment, "device", lambda: {"kind": "cpu", "memory_bytes": GIB})
    monkeypatch.setattr(slots.os, "sched_getaffinity", lambda _: {0, 1})
    with (
        pytest.raises(SharingError, match=r"^--jobs 3: allowed: at most 2 on 2 cores$"),
        slots.open_slots(plan, 3, None),
    ):
        pass


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cpu", "--gpus 5: allowed: at most 2, the CPU cores of this machine"),
        ("cuda", "--gpus 5: allowed: at most 4, the GPUs of this machine"),
    ],
)
def test_more_devices_than_the_machine_has_are_refused(plan, monkeypatch, kind, message):
    device = {"kind": kind, "count": 4, "memory_bytes": GIB}
    monkeypatch.setattr(slots.environment, "device", lambda: device)
    monkeypatch.setattr(slots.os, "sched_getaffinity", lambda _: {0, 1})
    wanted = dataclasses.replace(plan, devices=5)
    with pytest.raises(SharingError, match=f"^{message}$"), slots.open_slots(wanted, None, None):
        pass


@pytest.fixture
def control(tmp_path, monkeypatch) -> Path:
    """A stand-in for the daemon's control program that records its calls."""
    calls = tmp_path / "calls"
    program = tmp_path / "bin" / "nvidia-cuda-mps-control"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\n{{ echo "$* $CUDA_MPS_PIPE_DIRECTORY"; [ "$1" = -d ] || cat; }} >>"{calls}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setattr(mps, "_DEFAULT_PIPE", str(tmp_path / "none"))
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    return calls


def test_own_daemon_runs_in_a_private_directory_and_ends(control, tmp_path):
    with mps.shared_gpus(tmp_path / "runs", wanted=True, console=Console(file=io.StringIO())):
        pipe = os.environ["CUDA_MPS_PIPE_DIRECTORY"]
        assert Path(pipe).is_dir()
        assert Path(pipe).is_relative_to(tmp_path / "runs")
        assert control.read_text().split() == ["-d", pipe]
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    assert control.read_text().split()[-1] == "quit"


def test_foreign_daemon_is_left_alone(control, tmp_path, monkeypatch):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/control").touch()
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path / "theirs"))
    with mps.shared_gpus(tmp_path / "runs", wanted=True, console=Console(file=io.StringIO())):
        assert os.environ["CUDA_MPS_PIPE_DIRECTORY"] == str(tmp_path / "theirs")
    assert not control.exists()


def test_without_mps_nothing_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(mps, "_DEFAULT_PIPE", str(tmp_path / "none"))
    monkeypatch.setattr(mps.shutil, "which", lambda name: None)
    with mps.shared_gpus(tmp_path, wanted=True, console=Console(file=io.StringIO())):
        assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    assert not list(tmp_path.iterdir())
