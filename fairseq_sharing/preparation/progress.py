"""Show progress on standard error: completed work, speed and remaining time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from fairseq_sharing.terminal import Console, visible

console = Console(stderr=True)


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Show the mean units per second, since work in batches completes in bursts."""
        seconds = task.finished_time or task.elapsed
        completed = task.completed - task.fields["done"]
        if not completed or not seconds:
            return Text("")
        rate = completed / seconds
        return Text(f"{rate:,.{0 if rate >= 10 else 1}f} {task.fields['unit']}/s")


@contextmanager
def progress(
    description: str, total: int | None, unit: str = "lines", done: int = 0
) -> Iterator[Callable[[int], None]]:
    """Show a progress bar during a task.

    Args:
        description: name of the task.
        total: total number of units; None if unknown.
        unit: plural name of the unit.
        done: number of units that an earlier run completed.

    Yields:
        A function to call with the number of newly completed units.
    """
    columns = (
        TextColumn("{task.description:<26}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=24),
        TaskProgressColumn("{task.percentage:>3.0f}%", text_format_no_percentage="{task.completed:,}"),
        _RateColumn(table_column=Column(no_wrap=True)),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(escape(visible(description)), total=total, completed=done, unit=unit, done=done)
        pending = 0
        # Updating the display is slower than reading a line.
        batch = 1 if total is None else max(1, total // 200)

        def advance(amount: int) -> None:
            nonlocal pending
            pending += amount
            if pending >= batch:
                bar.update(task, advance=pending)
                pending = 0

        yield advance
        bar.update(task, advance=pending)
