"""Progress on standard error: what is done, how fast, how long it will take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

console = Console(stderr=True)


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Show units a second."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {task.fields['unit']}/s" if speed else "")


@contextmanager
def progress(description: str, total: int | None, unit: str = "lines") -> Iterator[Callable[[int], None]]:
    """Show one bar while a piece of work runs.

    Args:
        description: what is being done.
        total: units of work in all; None when unknown.
        unit: plural name of the unit.

    Yields:
        A function to call with the number of units just done.
    """
    columns = (
        TextColumn("{task.description:<32}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        _RateColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(description, total=total, unit=unit)
        yield lambda amount: bar.update(task, advance=amount)
