"""Show the progress of a study: one line per event, and on a terminal bars for the study and the current runs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from fairseq_sharing.studies.plan import PlannedRun
from fairseq_sharing.studies.states import RunState, State
from fairseq_sharing.training.progress import duration


class StudyProgress:
    """Show how much of a study is done and how long the rest takes.

    Args:
        console: where to show it.
        title: the name of the study.
        slots: number of runs at once.
    """

    def __init__(self, console: Console, title: str, slots: int) -> None:
        self._console, self._slots = console, slots
        self._began = time.monotonic()
        self._work_before: float | None = None
        self._bars = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True), markup=False),
            BarColumn(bar_width=16),
            TextColumn("{task.percentage:.0f}%"),
            TextColumn("{task.fields[state]}", table_column=Column(ratio=1, no_wrap=True), markup=False),
            console=console,
            expand=True,
            disable=not console.is_terminal,
        )
        self._study = self._bars.add_task(title, total=1.0, state="")
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> StudyProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """Print one line."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def update(self, runs: Sequence[PlannedRun], states: Mapping[str, RunState], current: Sequence[str]) -> None:
        """Show the states of all runs.

        Args:
            runs: all runs of the study.
            states: the state of each run by its name.
            current: names of the runs that this process trains or evaluates.
        """
        done, left = self.remaining(runs, states)
        finished = sum(state.state == State.FINISHED for state in states.values())
        text = f"{finished} of {len(runs)} runs finished" + (f", about {duration(left)} left" if left else "")
        self._bars.update(self._study, completed=done, state=text)
        for name in [name for name in self._tasks if name not in current]:
            self._bars.remove_task(self._tasks.pop(name))
        for name in current:
            state = states[name]
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=1.0, state="")
            speed = f", {state.tokens_per_second:,.0f} tokens/s" if state.tokens_per_second else ""
            self._bars.update(
                self._tasks[name], completed=state.fraction, state=f"{state.state}, epoch {state.epoch}{speed}"
            )

    def remaining(self, runs: Sequence[PlannedRun], states: Mapping[str, RunState]) -> tuple[float, float | None]:
        """Estimate the fraction of the study that is done, and the seconds left.

        A run weighs as long as a finished run of its row took, or the mean of all finished runs.

        Returns:
            The fraction, 0 to 1, and the seconds; None for the seconds while nothing has been trained.
        """
        known: dict[str, list[float]] = {}
        for run in runs:
            state = states[run.name]
            if state.fraction == 1 and state.seconds:
                known.setdefault(run.row, []).append(state.seconds)
        rows = {row: sum(times) / len(times) for row, times in known.items()}
        mean = sum(rows.values()) / len(rows) if rows else 1.0
        weights = {run.name: rows.get(run.row, mean) for run in runs}
        total = sum(weights.values())
        work = sum(weights[run.name] * states[run.name].fraction for run in runs)
        if self._work_before is None:
            self._work_before = work / total
        gained = work / total - self._work_before
        seconds = (time.monotonic() - self._began) * (1 - work / total) / gained if gained > 0.001 else None
        return work / total, seconds
