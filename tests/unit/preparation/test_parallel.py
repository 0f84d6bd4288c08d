import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from fairseq_sharing.preparation.parallel import Workers


def test_results_keep_the_order_and_the_input_is_read_no_faster_than_needed():
    read = 0

    def numbers() -> Iterator[int]:
        nonlocal read
        for number in range(200):
            read += 1
            yield -number

    with Workers(2) as workers:
        for position, result in enumerate(workers.map(abs, numbers())):
            assert result == position
            assert read <= position + 4 * 2 + 1


def test_a_single_item_needs_no_process():
    with Workers(2) as workers:
        # A closure cannot be sent to another process.
        assert list(workers.map(lambda item: item + 1, [1])) == [2]


KILLED = """
import itertools, os, time
from fairseq_sharing.preparation.parallel import Workers

def work(_):
    time.sleep(0.05)
    return os.getpid()

if __name__ == "__main__":
    with Workers(2) as workers:
        for process in workers.map(work, itertools.count()):
            print(process, flush=True)
"""


def test_processes_end_with_a_parent_that_is_killed(tmp_path: Path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, script], env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        workers: set[int] = set()
        while len(workers) < 2:
            workers.add(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
    patience = time.monotonic() + 30
    while any(map(alive, workers)):
        assert time.monotonic() < patience, "processes are left over"
        time.sleep(0.05)


def alive(process: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False
