"""Treat the signals that end a process like Ctrl-C, so that every command cleans up before it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Interruption(KeyboardInterrupt):
    """A signal that ends the process.

    Args:
        number: the signal.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number  # as a shell reports it


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raise an Interruption for a SIGTERM or SIGHUP, so that temporary files are removed as after Ctrl-C.

    A second signal is ignored while the process cleans up. Processes forked from this one end at once.
    """
    owner = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        for each in changed:
            signal.signal(each, signal.SIG_IGN)
        raise Interruption(number)

    # Not in a thread, and not if the caller ignores a signal, as nohup does.
    main = threading.current_thread() is threading.main_thread()
    changed = [number for number in SIGNALS if main and signal.getsignal(number) == signal.SIG_DFL]
    for number in changed:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)
