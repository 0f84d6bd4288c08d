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
