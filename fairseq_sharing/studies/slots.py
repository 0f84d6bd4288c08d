"""Divide a machine into slots, each of which trains one run at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment import environment
from fairseq_sharing.studies import mps
from fairseq_sharing.studies.plan import StudyPlan

# Memory of a run on a CPU before any run of the study has finished, in bytes.
_CPU_RUN = 2 * 2**30
# Memory of a CUDA context, in bytes, and the fraction of a GPU's memory to use.
_CONTEXT, _USABLE = 2**29, 0.9
# Tokens per sentence of the batch for which GPU memory is estimated.
_LENGTH = 32


@dataclass(frozen=True)
class Slot:
    """A share of the machine.

    Args:
        name: its cores or GPUs, for messages.
        cores: the CPU cores of its processes; empty for all.
        variables: environment variables of its processes.
    """

    name: str
    cores: frozenset[int] = frozenset()
    variables: dict[str, str] = field(default_factory=dict)


def cpu_slots(jobs: int, cores: Sequence[int], processes: int | None = None) -> list[Slot]:
    """Divide the CPU cores into disjoint slots of equal size.

    Args:
        jobs: number of slots.
        cores: the usable cores.
        processes: ``--devices`` of each run; with several, ``train`` divides the threads itself.
    """
    each = len(cores) // jobs
    threads = {name: str(each) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")} if (processes or 1) == 1 else {}
    shares = [cores[number * each : (number + 1) * each] for number in range(jobs)]
    return [Slot(_list("core", share), frozenset(share), threads) for share in shares]


def gpu_slots(jobs: int, gpus: int, each: int) -> list[Slot]:
    """Assign GPUs to slots: ``each`` GPUs per slot, or several slots per GPU.

    Args:
        jobs: number of slots.
        gpus: number of GPUs.
        each: GPUs per run.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(gpu) for gpu in range(gpus)]
    slots = []
    for number in range(jobs):
        first = number * each % (gpus - gpus % each)
        share = range(first, first + each)
        variables = {"CUDA_VISIBLE_DEVICES": ",".join(names[gpu] for gpu in share)}
        slots.append(Slot(_list("GPU", share), variables=variables))
    return slots


@contextmanager
def open_slots(plan: StudyPlan, jobs: int | None, console: Console) -> Iterator[list[Slot]]:
    """Divide this machine into slots; several runs per GPU share it by CUDA MPS, if available.

    Args:
        plan: the study.
        jobs: number of slots; None for as many as cores, GPUs and memory allow, and at most one per run.
        console: reports the slots.

    Raises:
        SharingError: more slots than the machine has cores, or runs that need more GPUs than it has.
    """
    device, each = environment.device(), plan.devices or 1
    cores = environment.usable_cores()
    cuda = device["kind"] == "cuda"
    most = int(device["count"]) if cuda else len(cores)
    if each > most:
        raise SharingError(
            f"--gpus {each}: allowed: at most {most}, the {'GPUs' if cuda else 'CPU cores'} of this machine"
        )
    if not cuda:
        jobs = jobs or automatic_cpu_jobs(plan, len(cores), device["memory_bytes"])
        if jobs * each > len(cores):
            raise SharingError(f"--jobs {jobs}: allowed: at most {len(cores) // each} on {len(cores)} cores")
        yield cpu_slots(jobs, cores, plan.devices)
        return
    jobs = jobs or automatic_gpu_jobs(plan, most, len(cores), device["memory_bytes"])
    with mps.shared_gpus(plan.directory, wanted=jobs > most // each, console=console):
        yield gpu_slots(jobs, most, each)


def automatic_cpu_jobs(plan: StudyPlan, cores: int, memory: int) -> int:
    """Return the number of runs that fit on the CPU at once: by cores, memory and number of runs."""
    peaks = [peak for run in plan.runs if (peak := _recorded_peak(run.directory.record()))]
    fitting = int(_USABLE * memory // max(peaks, default=_CPU_RUN))
    return max(1, min(cores // (plan.devices or 1), fitting, len(plan.runs)))


def automatic_gpu_jobs(plan: StudyPlan, gpus: int, cores: int, memory: int) -> int:
    """Return the number of runs that fit on the GPUs at once: by MPS, cores, memory and number of runs."""
    each = plan.devices or 1
    if each > 1 or not mps.is_available():
        return max(1, min(gpus // each, len(plan.runs)))
    peak = max(_gpu_peak(plan, row, memory) for row in plan.chosen_rows()) + _CONTEXT
    per_gpu = min(mps.MOST_CLIENTS, max(1, cores // gpus), max(1, int(_USABLE * memory // peak)))
    return max(1, min(gpus * per_gpu, len(plan.runs)))


def _gpu_peak(plan: StudyPlan, row: str, memory: int) -> int:
    """Return the GPU memory of a row: that of a finished run, or an estimate; all of it if there is neither."""
    runs = [run for run in plan.runs if run.row == row]
    peaks = [peak for run in runs if (peak := _recorded_peak(run.directory.record()))]
    if peaks:
        return max(peaks)
    from fairseq_sharing import flags  # imports torch
    from fairseq_sharing.description.step_memory import TrainingStep

    if plan.is_trained_elsewhere(runs[0]):
        return 0
    args = flags.parse(plan.compose(runs[0]).train)
    tokens = getattr(args, "max_tokens", None) or _LENGTH * args.batch_size
    try:
        return TrainingStep(args, plan.study.estimate["vocabulary"], "cuda").count(tokens, _LENGTH).peak
    except (SharingError, KeyError):  # experts, or a study without an estimate of its vocabulary
        return memory


def _recorded_peak(record: dict[str, Any]) -> int:
    return int(record.get("peak_memory_bytes") or 0)


def _list(what: str, numbers: Sequence[int]) -> str:
    return f"{what}{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
