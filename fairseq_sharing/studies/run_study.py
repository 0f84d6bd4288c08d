"""Run all stages of a study on this machine: prepare, train and evaluate in parallel, report."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence

from rich.console import Console

from fairseq_sharing.errors import SharingError
from fairseq_sharing.studies.declaration import write_declaration
from fairseq_sharing.studies.plan import StudyPlan, show
from fairseq_sharing.studies.progress import StudyProgress
from fairseq_sharing.studies.runner import StudyRunner, python_words
from fairseq_sharing.studies.slots import open_slots
from fairseq_sharing.terminal import say
from fairseq_sharing.training.processes import forwarded_signals, raise_signal


def run_study(plan: StudyPlan, jobs: int | None, budget: float | None, console: Console) -> None:
    """Run what is missing of a study, then report what is finished. Re-run to resume.

    Args:
        plan: the study.
        jobs: number of runs at once; None to choose it by the machine.
        budget: seconds after which the runs are stopped and the finished ones reported; None for no limit.
        console: shows commands and progress.

    Raises:
        SharingError: the data or the report failed, or, after all other runs have finished, some runs failed.
        KeyboardInterrupt, SystemExit: after a signal, when all runs have stopped.
    """
    plan.check()
    if prepare := plan.prepare():
        call(prepare, console)
    write_declaration(plan)
    with open_slots(plan, jobs, console) as slots, StudyProgress(console, plan.study.name) as progress:
        progress.say(f"{len(plan.runs)} runs, {len(slots)} at once; logs: {plan.directory}/*/study.log")
        runner = StudyRunner(plan, slots, progress, budget)
        failed = runner.run()
    if any(plan.results.glob("*.json")):
        call(plan.report(), console)
    left = runner.unfinished()
    if left:
        say(console, f"not finished: {'; '.join(left)}. Re-run the command to resume.")
    if failed:
        listed = "; ".join(f"{name} ({error})" for name, error in failed.items())
        raise SharingError(f"not in the table: {listed}; re-run the command to resume them")


def call(command: Sequence[str], console: Console) -> None:
    """Print and run a fairseq-sharing command, and forward signals to it.

    Raises:
        SharingError: the command failed.
        KeyboardInterrupt, SystemExit: after a signal.
    """
    show(command, console)
    process = subprocess.Popen(python_words(command), start_new_session=True)
    with forwarded_signals(process) as received:
        status = process.wait()
    raise_signal(received)
    if status:
        raise SharingError(f"{shlex.join(command[:3])} failed (exit status {status}); re-run the command to resume")
