"""The environment that a run records."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest
import torch

from fairseq_sharing.experiment import environment


def test_versions_name_what_can_change_a_result():
    versions = environment.versions()
    assert versions["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert {"python", "fairseq-fixed", "numpy", "sacrebleu"} <= versions.keys()


def test_device_has_kind_count_and_memory():
    device = environment.device()
    assert device["kind"] == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device["count"] >= 1
    assert device["memory_bytes"] > 2**28


CPU_INFO = """processor\t: 0
model name\t: Some CPU @ 2.60GHz
flags\t\t: fpu avx2 avx512f avx512_bf16 amx_tile amx_bf16

processor\t: 1
model name\t: Other CPU
"""


def test_a_training_device_tells_processor_threads_and_instruction_sets(monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text(CPU_INFO)
    monkeypatch.setattr(environment, "_CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(environment, "GPU_DRIVERS", ())
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    device = environment.training_device(3)
    assert device["kind"] == "cpu"
    assert device["name"] == "Some CPU @ 2.60GHz"
    assert device["threads"] == 3
    assert device["instructions"] == "AVX512 avx512_bf16 amx_bf16"
    (tmp_path / "cpuinfo").unlink()
    assert environment.training_device(1)["instructions"] == "AVX512"


@pytest.mark.parametrize(
    ("change", "alike"),
    [
        ({}, True),
        ({"count": 8, "memory_bytes": 2}, True),
        ({"threads": 2}, False),
        ({"name": "Other CPU"}, False),
        ({"instructions": "AVX2"}, False),
        ({"kind": "cuda"}, False),
    ],
)
def test_devices_round_alike_with_equal_processor_threads_and_instructions(change, alike):
    device = {"kind": "cpu", "name": "CPU", "count": 4, "memory_bytes": 1, "threads": 1, "instructions": "AVX512"}
    assert environment.rounds_alike(device, device | change) == alike


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs sched_setaffinity")
@pytest.mark.parametrize(("busy", "idle"), [([3.0, 0.0, 98.0], 2), ([99.0, 20.0, 0.0], 1), ([100.0, 80.0, 0.0], 1)])
def test_idle_cores_are_those_of_this_process_that_nothing_uses(monkeypatch, busy, idle):
    monkeypatch.setattr(environment.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(environment.psutil, "cpu_percent", lambda interval, percpu: busy)
    assert environment.idle_cores() == idle


@pytest.mark.parametrize(("chosen", "threads"), [("3", 3), ("2,1", 2), ("", 7), ("0", 7), ("many", 7)])
def test_chosen_threads_go_before_idle_cores(monkeypatch, chosen, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    monkeypatch.setattr(environment, "idle_cores", lambda: 7)
    assert environment.torch_threads() == threads


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_commit_is_that_of_a_clone_and_marks_changes(tmp_path, monkeypatch):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(environment, "PACKAGE_DIR", package)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert environment.commit() is None, "a package that the repository doesn't track is not its commit"
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    assert re.fullmatch("[0-9a-f]{40}", environment.commit())
    (package / "__init__.py").write_text("x = 1\n")
    assert re.fullmatch("[0-9a-f]{40}-dirty", environment.commit())
