"""Submit a study to Slurm: one array job with a task per run."""

from __future__ import annotations

import shlex
import subprocess
import time
from pathlib import Path

from rich.console import Console

from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import write_text
from fairseq_sharing.resources import PACKAGE_DIR
from fairseq_sharing.studies.plan import PlannedRun, StudyPlan, show

SBATCH = PACKAGE_DIR.parent / "scripts" / "slurm" / "train.sbatch"
# CPU cores per GPU: one that launches kernels and one for the data loader.
CORES_PER_GPU = 2
# Seconds after which Slurm has given the reason why a job waits.
_LOOK = 3.0
# Reasons that do not pass by waiting.
_NEVER = ("PartitionConfig", "PartitionNodeLimit", "PartitionTimeLimit", "BadConstraints", "AssociationJobLimit")


def job_file(plan: StudyPlan) -> Path:
    """Return the file for the lines of the array job."""
    return Path("runs") / "slurm" / f"{plan.study.name}.txt"


def job_lines(plan: StudyPlan) -> list[str]:
    """Return one shell command per run; ``train.sbatch`` sets ``$MACHINES``."""
    return [f"{shlex.join(plan.train(run))} $MACHINES" for run in _trained_here(plan)]


def _trained_here(plan: StudyPlan) -> list[PlannedRun]:
    return [run for run in plan.runs if not plan.is_trained_elsewhere(run)]


def submission(plan: StudyPlan, file: Path, flags: str) -> list[str]:
    """Return the command that submits the array job.

    Args:
        plan: the study; its devices are GPUs, or none for a training on the CPU.
        file: the file with ``job_lines``.
        flags: additional sbatch flags, e.g. ``--partition gpu --time 24:00:00``; they take precedence.

    Raises:
        SharingError: the package is not run from a clone.
    """
    if not SBATCH.is_file():
        raise SharingError(f"--slurm: {SBATCH} is missing; run the command in a clone of the repository")
    gpus = ["--gpus-per-node", str(plan.devices)] if plan.devices else []
    cores = ["--cpus-per-task", str(CORES_PER_GPU * (plan.devices or 0) or 1)]
    array = [f"--array=1-{len(_trained_here(plan))}", "--nodes", str(plan.nodes), *gpus, *cores]
    return ["sbatch", "--parsable", *array, *shlex.split(flags), str(SBATCH), str(file)]


def submit(plan: StudyPlan, flags: str, console: Console) -> str:
    """Submit an array job that trains all runs. The data must be prepared.

    Args:
        plan: the study.
        flags: additional sbatch flags.
        console: where the command and, if the job cannot start, the reason are printed.

    Returns:
        The Slurm job ID.

    Raises:
        SharingError: sbatch is missing or failed.
    """
    file = job_file(plan)
    write_text(file, "".join(line + "\n" for line in job_lines(plan)))
    command = submission(plan, file, flags)
    show(command, console)
    job = _slurm(command, "sbatch").partition(";")[0]
    time.sleep(_LOOK)
    reason = _slurm(["squeue", "--noheader", "--format=%r", "--jobs", job], "squeue").partition("\n")[0].strip("() ")
    if reason in _NEVER:
        console.print(
            f"job {job} cannot start with these resources ({reason}); compare them with: sinfo --Node --long; "
            f"then scancel {job} and submit with other flags, for example --slurm '--cpus-per-task 1'",
            markup=False,
            soft_wrap=True,
        )
    return job


def _slurm(command: list[str], program: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SharingError(f"--slurm: {program} not found; run the command on a machine that can submit jobs") from None
    if done.returncode:
        raise SharingError(f"--slurm: {program} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()
