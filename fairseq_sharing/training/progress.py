"""Show the progress of a training on stderr, from the JSON lines of its log."""

from __future__ import annotations

import time
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from fairseq_sharing.terminal import say

# The bar estimates speed over this many seconds, so that validation and saving between epochs do not distort it.
SPEED_PERIOD = 600.0
# Outside of a terminal, seconds between the lines within an epoch.
LINE_PERIOD = 60.0


class TrainingProgress:
    """Show a progress bar on a terminal; elsewhere print a line per minute within an epoch, and one after it.

    Args:
        console: where to show it.
        name: the name of the run.
        config: the composed configuration; ``max_epoch`` and ``max_update`` define the end of training.
    """

    def __init__(self, console: Console, name: str, config: DictConfig) -> None:
        self._console = console
        self._max_epoch = int(config.train.get("max_epoch") or 0)
        self._max_update = int(config.train.get("max_update") or 0)
        self._epoch = 0
        self._latest: dict[str, Any] = {}
        self._valid = ""
        self._within = ""  # the part of the epoch that is done
        self._started = self._printed = time.monotonic()
        self._log_interval = int(config.train.get("log_interval") or 100)
        self._begun: float | None = None  # the fraction done before this run was resumed
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=10),
            TextColumn("{task.percentage:.0f}%"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            # In the last column and with the most important value first, because a narrow terminal truncates it.
            TextColumn("left | {task.fields[state]}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
            console=console,
            expand=True,
            speed_estimate_period=SPEED_PERIOD,
            disable=not console.is_terminal,
        )
        total = 1.0 if self._max_epoch or self._max_update else None
        self._task = self._bar.add_task(name, total=total, state="starting")

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, kind: str, record: dict[str, Any]) -> None:
        """Process one JSON record of the log.

        Args:
            kind: ``train_inner`` (each log interval), ``train`` (each epoch) or the name of a validation subset.
            record: its values, as written by fairseq.
        """
        self._epoch = int(record.get("epoch") or self._epoch)
        self._within = ""
        if "valid_loss" in record:
            bleu = f", BLEU {float(record['valid_bleu']):.2f}" if "valid_bleu" in record else ""
            self._valid = f", valid {float(record['valid_loss']):.3f}{bleu}"
            self._print_state()
        elif kind == "train_inner":
            self._latest = record
            if "update" in record:  # in epochs
                self._within = f", {100 * (float(record['update']) - self._epoch + 1):.0f}%"
            if self._begun is None:
                new = self._log_interval / max(1, int(record.get("num_updates") or 0))
                self._begun = self._fraction() * max(0.0, 1 - new)
            if time.monotonic() - self._printed >= LINE_PERIOD:
                self._print_state()
        self._bar.update(self._task, completed=self._fraction(), state=self._state())

    def print_line(self, text: str) -> None:
        """Print a separate line."""
        say(self._console, f"  {text}")

    def _fraction(self) -> float:
        parts = [0.0]
        if self._max_epoch:
            parts.append(float(self._latest.get("update") or 0) / self._max_epoch)
        if self._max_update:
            parts.append(float(self._latest.get("num_updates") or 0) / self._max_update)
        return min(1.0, max(parts))

    def _state(self) -> str:
        epoch = f"epoch {self._epoch}" + (f"/{self._max_epoch}" if self._max_epoch else "")
        if not self._latest:
            return epoch + self._valid
        loss, speed = float(self._latest["loss"]), float(self._latest.get("wps") or 0)
        updates = f"{int(self._latest['num_updates']):,}" + (f"/{self._max_update:,}" if self._max_update else "")
        return f"{epoch}{self._within} | loss {loss:.3f}{self._valid} | {speed:,.0f} tokens/s | update {updates}"

    def _print_state(self) -> None:
        if self._console.is_terminal:
            return
        self._printed = time.monotonic()
        seconds, done = self._printed - self._started, self._fraction()
        gained = done - (self._begun or 0)
        left = f", about {duration(seconds * (1 - done) / gained)} left" if gained > 0 and done < 1 else ""
        say(self._console, f"  {self._state()} | {duration(seconds)}{left}")


def duration(seconds: float) -> str:
    """Format seconds as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
