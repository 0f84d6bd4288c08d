"""Run a study of stand-in runs in a process of its own: ``python stand_in_study.py STUDY JOBS [BUDGET]``."""

from __future__ import annotations

import os
import sys

import stand_in_run
from rich.console import Console

from fairseq_sharing.experiment.config import find_study
from fairseq_sharing.studies import runner
from fairseq_sharing.studies.plan import StudyPlan
from fairseq_sharing.studies.progress import StudyProgress
from fairseq_sharing.studies.slots import Slot, cpu_slots


def make_runner(study: str, jobs: int, budget: float | None = None, slots: list[Slot] | None = None, **settings):
    """Return a runner of stand-ins and its plan."""
    runner.python_words = stand_in_run.words
    runner._LOOK_SECONDS = 0.2
    plan = StudyPlan(find_study(study), study, **settings)
    slots = slots or cpu_slots(jobs, sorted(os.sched_getaffinity(0)) * jobs)
    progress = StudyProgress(Console(stderr=True), plan.study.name)
    return runner.StudyRunner(plan, slots, progress, budget), plan


if __name__ == "__main__":
    budget = float(sys.argv[3]) if len(sys.argv) > 3 else None
    failed = make_runner(sys.argv[1], int(sys.argv[2]), budget)[0].run()
    sys.exit(len(failed))
