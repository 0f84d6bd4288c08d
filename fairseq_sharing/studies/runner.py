"""Run a study: start its runs in the slots of this machine until all are evaluated.

All state is in the run directories. A study that was killed resumes when it is started again, and several processes
can run one study at the same time: each claims the runs that it works on.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from fairseq_sharing.studies.plan import PlannedRun, StudyPlan
from fairseq_sharing.studies.progress import StudyProgress
from fairseq_sharing.studies.slots import Slot
from fairseq_sharing.studies.states import RunState, State, read_state
from fairseq_sharing.training.processes import END_WITH_PARENT, on_signals, raise_signal, signal_all
from fairseq_sharing.training.progress import duration

_POLL_SECONDS = 0.2
# Seconds between looks at the logs, and at runs that another process has claimed.
_LOOK_SECONDS = 10.0
# Seconds that a stopped run has to write its checkpoint; the last ones of a budget.
_GRACE_SECONDS = 60.0
# No run starts with less free disk space, in bytes.
_LEAST_DISK = 2**30
_RETRIES = 1


@dataclass
class _Job:
    """A run in a slot."""

    run: PlannedRun
    slot: Slot
    claim: int
    process: subprocess.Popen
    stage: str
    updates: int


class StudyRunner:
    """Trains and evaluates the runs of a study.

    Args:
        plan: the study.
        slots: the slots of this machine.
        progress: shows events and progress.
        budget: seconds after which the runs are stopped; None for no limit.
    """

    def __init__(self, plan: StudyPlan, slots: list[Slot], progress: StudyProgress, budget: float | None = None):
        self._plan, self._progress = plan, progress
        self._free = list(slots)
        self._jobs: list[_Job] = []
        self._done: set[str] = set()
        self._failed: dict[str, str] = {}
        self._tries: dict[str, int] = {}
        self._states: dict[str, RunState] = {}
        self._grace = _GRACE_SECONDS if budget is None else min(_GRACE_SECONDS, budget / 4)
        self._stop_at = time.monotonic() + budget - self._grace if budget is not None else None
        self._stopped_at: float | None = None
        self._signals: list[int] = []
        self._looked = -_LOOK_SECONDS

    def run(self) -> dict[str, str]:
        """Train and evaluate all runs.

        Returns:
            The failed runs by name, each with its last error.

        Raises:
            KeyboardInterrupt, SystemExit: after a signal, when all runs have stopped.
        """
        with on_signals(self._signals.append):
            try:
                while True:
                    self._collect()
                    self._stop_if_due()
                    if self._stopped_at is None:
                        self._start_ready()
                    self._look()
                    if not self._jobs and (self._stopped_at is not None or not self._unfinished()):
                        break
                    time.sleep(_POLL_SECONDS)
            finally:  # whatever happens, no process of this study is left behind
                self._signal_all(signal.SIGTERM)
        raise_signal(self._signals)
        return self._failed

    def unfinished(self) -> list[str]:
        """Name the runs that are neither finished nor failed."""
        return [run.name for run in self._unfinished()]

    def _unfinished(self) -> list[PlannedRun]:
        states = {run.name: self._states.get(run.name) or read_state(self._plan, run) for run in self._plan.runs}
        return [
            run
            for run in self._plan.runs
            if states[run.name].state != State.FINISHED and run.name not in self._done | self._failed.keys()
        ]

    def _look(self) -> None:
        """Read the states of all runs from time to time and show them."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        for run in self._plan.runs:
            if run.name not in self._done:
                self._states[run.name] = read_state(self._plan, run)
        self._progress.update(self._plan.runs, self._states, [job.run.name for job in self._jobs])

    def _start_ready(self) -> None:
        """Start the next runs in the free slots."""
        busy = {job.run.name for job in self._jobs}
        for run in self._plan.runs:
            if not self._free:
                return
            if run.name in busy | self._done | self._failed.keys() or not self._is_ready(run):
                continue
            claim = run.directory.claim()
            if claim is None:  # another process works on it
                continue
            state = read_state(self._plan, run)
            if state.state in (State.FINISHED, State.TRAINING, State.EVALUATING):
                os.close(claim)
                continue
            if shutil.disk_usage(run.directory.path).free < _LEAST_DISK:
                os.close(claim)
                self._fail(run, f"{run.directory.path}: less than 1 GiB of free disk space")
                continue
            self._start(run, self._free.pop(0), claim, "evaluate" if state.state == State.TRAINED else "train", state)

    def _is_ready(self, run: PlannedRun) -> bool:
        """Return whether a run can start; a run that needs the map of a failed run fails too."""
        known = self._states.get(run.name)
        if known is not None and known.state in (State.FINISHED, State.TRAINING, State.EVALUATING):
            return False
        origin = self._plan.origin(run)
        if origin is None:
            return True
        if origin.record().get("exit_status") == 0 and not origin.is_training():
            return True
        planned = next((other for other in self._plan.runs if other.directory == origin), None)
        if planned is None:
            self._fail(run, f"needs the map of {origin.path}, which is not trained; add its row to --rows")
        elif planned.name in self._failed:
            self._fail(run, f"needs the map of {planned.name}, which failed")
        return False

    def _start(self, run: PlannedRun, slot: Slot, claim: int, stage: str, state: RunState) -> None:
        command = self._plan.train(run) if stage == "train" else self._plan.evaluate(run)
        with run.directory.study_log.open("ab") as log:
            process = subprocess.Popen(
                python_words(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **slot.variables, END_WITH_PARENT: str(os.getpid())},
                start_new_session=True,
            )
        if slot.cores:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(process.pid, slot.cores)
        self._jobs.append(_Job(run, slot, claim, process, stage, state.updates))
        if stage == "train":
            resumed = f", resuming after {state.updates:,} updates" if state.updates else ""
            self._progress.say(f"{run.name}: training on {slot.name}{resumed}")

    def _collect(self) -> None:
        """Continue or end the jobs whose process has ended."""
        for job in [job for job in self._jobs if job.process.poll() is not None]:
            self._jobs.remove(job)
            state = read_state(self._plan, job.run)
            self._states[job.run.name] = state
            status = job.process.returncode
            if status == 0 and job.stage == "train" and self._stopped_at is None:
                self._start(job.run, job.slot, job.claim, "evaluate", state)
                continue
            os.close(job.claim)
            self._free.append(job.slot)
            if status == 0 and job.stage == "evaluate":
                self._done.add(job.run.name)
                self._say_finished(job, state)
            elif status and self._stopped_at is None:
                self._say_failed(job, state, status)

    def _say_finished(self, job: _Job, state: RunState) -> None:
        scores = {test: score.get("bleu", score.get("perplexity")) for test, score in (state.scores or {}).items()}
        metric = "BLEU" if any("bleu" in score for score in (state.scores or {}).values()) else "perplexity"
        text = ", ".join(f"{test} {value:.2f}" for test, value in scores.items() if value is not None)
        left = self._progress.seconds_left(self._plan.runs, self._states)
        more = f"; about {duration(left)} left" if left else ""
        self._progress.say(f"{job.run.name}: finished, {metric}: {text}{more}")

    def _say_failed(self, job: _Job, state: RunState, status: int) -> None:
        """Try again if the run was killed or has made progress; otherwise record its last error."""
        run, error = job.run, _last_error(job.run, status)
        if state.state in (State.TRAINING, State.EVALUATING):  # another process was faster
            return
        tries = self._tries[run.name] = self._tries.get(run.name, 0) + 1
        if tries <= _RETRIES and (status < 0 or status > 128 or state.updates > job.updates):
            self._progress.say(f"{run.name}: {error}; trying again")
            return
        self._fail(run, error)

    def _fail(self, run: PlannedRun, error: str) -> None:
        self._failed[run.name] = error
        self._progress.say(f"{run.name}: failed: {error}; continuing with the other runs")

    def _stop_if_due(self) -> None:
        """Stop all runs after a signal or shortly before the end of the budget; kill them after the grace period."""
        now = time.monotonic()
        due = self._stop_at is not None and now > self._stop_at
        if self._stopped_at is None and (self._signals or due):
            self._stopped_at = now
            self._signal_all(signal.SIGTERM)
            if self._jobs:
                reason = "stopping" if self._signals else "the budget is used"
                self._progress.say(
                    f"{reason}: waiting for the current runs ({len(self._jobs)}) to write their checkpoints"
                )
        elif self._stopped_at is not None and (now - self._stopped_at > self._grace or len(self._signals) > 1):
            self._signal_all(signal.SIGKILL)

    def _signal_all(self, number: int) -> None:
        for job in self._jobs:
            signal_all(job.process, number)


def python_words(command: Sequence[str]) -> list[str]:
    """Return a fairseq-sharing command as run by this Python."""
    return [sys.executable, "-P", "-m", "fairseq_sharing", *command[1:]]


def _last_error(run: PlannedRun, status: int) -> str:
    """Return the reason of a failure: a signal, or the last error line in the run's log."""
    number = -status if status < 0 else status - 128
    if number > 0:
        return f"killed by {signal.Signals(number).name}"
    lines = run.directory.study_log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.partition(": error: ")[2] for line in lines if ": error: " in line]
    return errors[-1] if errors else f"exit status {status} (log: {run.directory.study_log})"
