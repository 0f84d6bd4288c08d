"""Show the progress of a study: one line per event, and on a terminal bars for the study and the current runs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import fmean

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from fairseq_sharing.studies.plan import PlannedRun
from fairseq_sharing.studies.states import RunState, State
from fairseq_sharing.terminal import say
from fairseq_sharing.training.progress import duration


class StudyProgress:
    """Show how much of a study is done and how long the rest takes.

    Args:
        console: where to show it.
        title: the name of the study.
    """

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._began = time.monotonic()
        self._done_before: float | None = None
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

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """Print one line."""
        say(self._console, text)

    def update(self, runs: Sequence[PlannedRun], states: Mapping[str, RunState], current: Sequence[str]) -> None:
        """Show the states of all runs.

        Args:
            runs: all runs of the study.
            states: the state of each run by its name.
            current: names of the runs that this process trains or evaluates.
        """
        done, left = fraction_done(runs, states), self.seconds_left(runs, states)
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

    def seconds_left(self, runs: Sequence[PlannedRun], states: Mapping[str, RunState]) -> float | None:
        """Estimate the seconds left from what was done since the start; None while it is too little.

        Args: those of ``update`` and of ``fraction_done``.
        """
        done = fraction_done(runs, states)
        if self._done_before is None:
            self._done_before = done
        gained = done - self._done_before
        return (time.monotonic() - self._began) * (1 - done) / gained if gained > 0.001 else None


def fraction_done(runs: Sequence[PlannedRun], states: Mapping[str, RunState]) -> float:
    """Return the fraction of a study's training that is done, 0 to 1.

    A run weighs as long as a finished run of its row took, or the mean of all finished rows.

    Args:
        runs: all runs of the study.
        states: the state of each run by its name.
    """
    known: dict[str, list[float]] = {}
    for run in runs:
        state = states[run.name]
        if state.fraction == 1 and state.seconds:
            known.setdefault(run.row, []).append(state.seconds)
    rows = {row: fmean(times) for row, times in known.items()}
    mean = fmean(rows.values()) if rows else 1.0
    weights = {run.name: rows.get(run.row, mean) for run in runs}
    return sum(weights[run.name] * states[run.name].fraction for run in runs) / sum(weights.values())
