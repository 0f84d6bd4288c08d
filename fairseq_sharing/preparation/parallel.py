"""Process chunks in several processes, in order, with a bounded number of chunks in memory."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from fairseq_sharing.errors import SharingError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """Worker processes that are started when there is enough work.

    ``multiprocessing.Pool.imap`` reads its input without a limit, so a corpus larger than memory would fill its
    queues. This class keeps at most four chunks per process in progress.

    Args:
        processes: number of processes; 1 uses the current process.
    """

    def __init__(self, processes: int):
        self.processes = processes
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Apply a function to items and yield the results in the order of the items.

        Args:
            function: picklable, called in a worker process.
            items: picklable items, read only as fast as they are processed.

        Yields:
            One result per item.

        Raises:
            SharingError: a process was killed.
        """
        items = iter(items)
        first = list(itertools.islice(items, 2))
        if self.processes == 1 or len(first) < 2:
            yield from map(function, itertools.chain(first, items))
            return
        if self._executor is None:
            # Not "fork": progress bars and downloads use threads, which do not run in a forked process.
            self._executor = ProcessPoolExecutor(
                self.processes, multiprocessing.get_context("spawn"), initializer=_follow_parent
            )
        try:
            yield from self._results(self._executor, function, itertools.chain(first, items))
        except BrokenProcessPool:
            raise SharingError(
                "a worker process was killed (out of memory?); re-run the command to resume, or use fewer --workers"
            ) from None

    def _results(
        self, executor: ProcessPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[Result]:
        pending: deque[Future[Any]] = deque()
        for item in items:
            pending.append(executor.submit(function, item))
            if len(pending) >= 4 * self.processes:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _follow_parent() -> None:
    """Ignore Ctrl-C, which the parent handles, and exit if the parent is killed instead of waiting for work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
