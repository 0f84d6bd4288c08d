"""Slurm gets one array job with a line per run."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.config import find_study
from fairseq_sharing.studies import slurm
from fairseq_sharing.studies.plan import StudyPlan


def plan_of(**options) -> StudyPlan:
    return StudyPlan(find_study("wmt16_en_de"), "wmt16_en_de", ("vanilla", "cycle_n12"), (1, 2), **options)


@pytest.fixture
def programs(monkeypatch, tmp_path):
    """Stand-ins for sbatch and squeue: each call is recorded, and squeue prints the file ``reason``."""
    calls = tmp_path / "calls"
    for name, answer in (("sbatch", "echo 4711"), ("squeue", f"cat {tmp_path}/reason")):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "{name} $*" >>"{calls}"\n{answer}\n')
        (tmp_path / name).chmod(0o755)
    (tmp_path / "reason").write_text("(Priority)\n")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(slurm, "_LOOK", 0.0)
    monkeypatch.chdir(tmp_path)
    return calls


def test_array_has_a_line_per_run_and_asks_for_what_a_run_needs(programs, tmp_path):
    plan = plan_of(devices=8, nodes=2)
    assert slurm.submit(plan, "--time 24:00:00", Console(file=io.StringIO())) == "4711"
    lines = (tmp_path / "runs/slurm/wmt16_en_de.txt").read_text().splitlines()
    assert lines[0] == "fairseq-sharing train wmt16_en_de row=vanilla seed=1 --devices 8 $MACHINES"
    assert len(lines) == 4
    assert programs.read_text().splitlines()[0] == (
        f"sbatch --parsable --array=1-4 --nodes 2 --gpus-per-node 8 --cpus-per-task 16 --time 24:00:00 {slurm.SBATCH} "
        "runs/slurm/wmt16_en_de.txt"
    )
    assert slurm.SBATCH.is_file()


def test_without_gpus_none_are_asked_for():
    plan = plan_of()
    words = slurm.submission(plan, slurm.job_file(plan), "--cpus-per-task 4")
    assert "--gpus-per-node" not in words
    assert words[words.index("--cpus-per-task") + 1] == "1"
    assert words[-4:-2] == ["--cpus-per-task", "4"], "the user's flags come last and win"
    assert "#SBATCH --cpus-per-task" not in slurm.SBATCH.read_text()


@pytest.mark.parametrize(("reason", "explained"), [("(PartitionConfig)", True), ("(Resources)", False)])
def test_job_that_cannot_start_is_explained(programs, tmp_path, reason, explained):
    (tmp_path / "reason").write_text(reason + "\n")
    told = io.StringIO()
    slurm.submit(plan_of(devices=1), "", Console(file=told, width=1000))
    message = "job 4711 cannot start with these resources (PartitionConfig); compare them with: sinfo --Node --long"
    assert (message in told.getvalue()) is explained


def test_outside_of_a_clone_nothing_is_planned(monkeypatch, tmp_path):
    monkeypatch.setattr(slurm, "SBATCH", tmp_path / "train.sbatch")
    with pytest.raises(SharingError, match=r"train.sbatch is missing; run the command in a clone of the repository$"):
        slurm.submission(plan_of(), slurm.job_file(plan_of()), "")


def test_failing_or_missing_programs_are_reported(programs, tmp_path, monkeypatch):
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2; exit 1\n")
    with pytest.raises(SharingError, match=r"^--slurm: sbatch failed: sbatch: error: invalid partition$"):
        slurm.submit(plan_of(), "", Console(file=io.StringIO()))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SharingError, match=r"^--slurm: sbatch not found; run the command on a machine that can submit"):
        slurm.submit(plan_of(), "", Console(file=io.StringIO()))
