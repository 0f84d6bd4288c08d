"""Start a training process, wait for it, and forward signals to it and its children."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

POLL_SECONDS = 0.2
# Time for a training to exit by itself after a signal.
GRACE_SECONDS = 30.0
# The module of each program.
PROGRAMS = {"fairseq-train": "fairseq_cli.train", "torchrun": "torch.distributed.run"}

# Names the parent process with which a command ends, in its environment.
END_WITH_PARENT = "FAIRSEQ_SHARING_END_WITH_PARENT"
_PR_SET_PDEATHSIG = 1  # prctl(2)

Process = subprocess.Popen  # its output goes to the log file


def spawn(command: Sequence[str], output: int, inherited: Sequence[int], variables: Mapping[str, str]) -> Process:
    """Start one of ``PROGRAMS`` with this Python.

    Args:
        command: the program's name and its arguments.
        output: descriptor for its stdout and stderr.
        inherited: descriptors to keep open in it.
        variables: its environment.
    """
    return subprocess.Popen(
        [sys.executable, "-m", PROGRAMS[command[0]], *command[1:]],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        # A user's file such as test.py in the current directory must not shadow a module of the standard library.
        env={**variables, "PYTHONSAFEPATH": "1"},
        pass_fds=tuple(inherited),
        # A separate session: a Ctrl-C in the terminal arrives once, forwarded, instead of twice.
        start_new_session=True,
    )


def wait(process: Process, record: dict[str, Any], read: Callable[[], None], received: list[int]) -> int:
    """Wait for a process; kill it if it has not ended some time after a signal was received.

    Args:
        process: the process.
        record: its ``peak_memory_bytes`` is raised to the peak memory of the process.
        read: called at every poll.
        received: the signals received so far.

    Returns:
        The exit status.
    """
    kill_at = None
    while (status := poll(process, record)) is None:
        read()
        if kill_at is None and received:
            kill_at = time.monotonic() + GRACE_SECONDS
        if kill_at is not None and time.monotonic() > kill_at:
            signal_all(process, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    if status:
        # End what it left running: data loader workers, ranks whose torchrun was killed.
        signal_all(process, signal.SIGKILL)
    return status


def end(process: Process) -> None:
    """Kill a process that is still running, because its caller failed; otherwise it would train unwatched."""
    if process.returncode is None:
        signal_all(process, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process.pid, 0)
        process.returncode = -signal.SIGKILL


def poll(process: Process, record: dict[str, Any]) -> int | None:
    """Return a process's exit status, or None while it runs; add its peak memory to the record."""
    if process.returncode is None:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            # ru_maxrss: bytes on macOS, KiB elsewhere
            peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
            record["peak_memory_bytes"] = max(record["peak_memory_bytes"], peak)
    return process.returncode


@contextlib.contextmanager
def forwarded_signals(process: Process) -> Iterator[list[int]]:
    """Forward SIGINT and SIGTERM to a process and its children; yields the list of received signals."""
    received: list[int] = []

    def forward(number: int) -> None:
        received.append(number)
        signal_all(process, number)

    with on_signals(forward):
        yield received


@contextlib.contextmanager
def on_signals(act: Callable[[int], None]) -> Iterator[None]:
    """Call a function with the number of each SIGINT and SIGTERM, which do nothing else."""
    before = {
        number: signal.signal(number, lambda received, frame: act(received))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_signal(received: Sequence[int]) -> None:
    """End as the first received signal would have ended this process; return if there is none."""
    if received:
        raise KeyboardInterrupt if received[0] == signal.SIGINT else SystemExit(128 + received[0])


def signal_all(process: Process, number: int) -> None:
    """Send a signal to the session of a process, including its ranks and their data loader workers."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def end_with_parent(number: int, parent: int | None = None) -> None:
    """Let the kernel signal this process when its parent dies (on Linux).

    Args:
        number: the signal.
        parent: process ID of the parent; if it is dead already, the process exits.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
        if parent is not None and os.getppid() != parent:
            sys.exit(128 + number)
