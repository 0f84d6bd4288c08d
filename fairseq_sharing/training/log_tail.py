"""Follow a training log as it is written, and summarize it in one line."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

from fairseq_sharing.experiment.run_directory import parse_log_line
from fairseq_sharing.training.progress import TrainingProgress

_LOG_LINE = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \| ")
_ERROR_LINE = re.compile(r"^(?:[\w.-]+: error: |(?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b)")
# torchrun's message about a rank that was killed by a signal; its own exit status does not show it.
_RANK_KILLED = re.compile(r"Signal \d+ \((SIG\w+)\) received by PID")
_ROLL_CALL = "| fairseq_sharing.training.rank | "
GIB = 1024**3


class LogTail:
    """Read the lines that are appended to a log file from now on.

    Args:
        file: an existing log file.
        progress: receives every JSON record.
    """

    def __init__(self, file: Path, progress: TrainingProgress) -> None:
        self._log = file.open("rb")
        self._log.seek(0, 2)
        self._progress = progress
        self._rest = b""
        self._valid: dict[str, Any] = {}
        self._epoch: dict[str, Any] = {}
        self._least_gpu_free: float | None = None
        self._errors: list[str] = []
        self._killed = ""
        self._other = ""

    def close(self) -> None:
        """Close the file; the summary remains available."""
        self._log.close()

    def read(self) -> None:
        """Process the lines written since the last call."""
        *lines, self._rest = (self._rest + self._log.read()).split(b"\n")
        for line in lines:
            self._take(line.decode("utf-8", errors="replace"))

    def error(self, status: int) -> str:
        """Return the line that explains why the training failed.

        Args:
            status: the exit status; negative if the process was killed by a signal.
        """
        # A command's one-line error takes precedence over the errors of ranks that lost a peer.
        reported = [line for line in self._errors if ": error: " in line]
        name = self._killed or (signal.Signals(-status).name if status < 0 else "")
        if name and not reported and (self._killed or not self._errors):
            return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        line = (reported or self._errors[-1:] or [self._other or f"exit status {status}"])[0]
        return re.sub(r"^[\w.-]+: error: ", "", line)

    def summary(self) -> str:
        """Return the epochs, updates, validation loss and measured speed."""
        if not self._epoch:
            return "no updates left to make"
        epochs = int(self._epoch["epoch"])
        loss = f", valid loss {float(self._valid['valid_loss']):.3f}" if self._valid else ""
        return (
            f"{epochs} epoch{'s' * (epochs != 1)}, {int(self._epoch['train_num_updates']):,} updates{loss};"
            f" {float(self._epoch['train_wpb']):,.0f} target tokens per batch (measured),"
            f" {float(self._epoch['train_wps']):,.0f} target tokens/s in the last epoch"
        )

    def peak_gpu_bytes(self, total_bytes: int) -> int:
        """Return a GPU's peak memory in bytes over the logged updates; fairseq logs it to 0.1 GiB."""
        return 0 if self._least_gpu_free is None else max(0, total_bytes - int(self._least_gpu_free * GIB))

    def _take(self, line: str) -> None:
        parsed = parse_log_line(line)
        if parsed is None:
            if _ROLL_CALL in line:
                self._progress.print_line(line.partition(_ROLL_CALL)[2])
            if killed := _RANK_KILLED.search(line):
                # When one rank is killed, the others receive a SIGTERM.
                self._killed = killed[1] if self._killed in ("", "SIGTERM") else self._killed
            if line.strip() and not _LOG_LINE.match(line):
                self._other = line.strip()
                if _ERROR_LINE.match(line) and "ChildFailedError" not in line:
                    self._errors.append(line.strip())
            return
        kind, record = parsed
        if kind == "train":
            self._epoch = record
        elif "valid_loss" in record:
            self._valid = record
        for key in ("gb_free", "train_gb_free"):
            if key in record:
                free = float(record[key])
                self._least_gpu_free = min(free, self._least_gpu_free or free)
        self._progress.update(kind, record)
