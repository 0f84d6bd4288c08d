"""Run commands like ``python -m`` in processes forked from a server that has already imported torch and fairseq.

Importing them takes longer than most of these commands. The server does not import the plugin: ``--user-dir`` does, as
for a user.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "fairseq_sharing"
# No GPU and a single thread, so that two runs are bitwise comparable.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
PATIENCE = 240  # timeout of a command in seconds, for a busy machine

_server = multiprocessing.get_context("forkserver")
# fairseq_cli.train comes first: it directs the log to stdout before other fairseq modules configure logging.
# Every optimizer imports torch._dynamo.
_server.set_forkserver_preload(
    ["fairseq_cli.train", "fairseq_cli.generate", "fairseq_cli.validate", "torch._dynamo", "pytest"]
)


@dataclass
class Command:
    """A running or finished command.

    Args:
        process: its process.
        log: path of its output files without ``.out`` and ``.err``.
    """

    process: multiprocessing.process.BaseProcess
    log: Path

    @property
    def stdout(self) -> str:
        return Path(f"{self.log}.out").read_text()

    @property
    def stderr(self) -> str:
        return Path(f"{self.log}.err").read_text()

    def wait(self, status: int | None = 0, patience: float = PATIENCE) -> Command:
        """Wait for the command to end. The status None accepts any except for 0."""
        self.process.join(patience)
        code = self.process.exitcode
        if code is None:
            self.kill()
        assert code == status if status is not None else code, f"exit status {code}: {self.stdout} {self.stderr}"
        return self

    def wait_until(self, ready: Callable[[], object]) -> None:
        """Wait until a condition is met."""
        end = time.monotonic() + PATIENCE
        while not ready():
            assert self.process.is_alive(), f"it ended first: {self.stdout} {self.stderr}"
            assert time.monotonic() < end, f"nothing for {PATIENCE} s: {self.stdout}"
            time.sleep(0.005)

    def kill(self) -> None:
        """SIGKILL it."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()


class Commands:
    """Starts commands and stores their output.

    Args:
        folder: directory of the output files.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._count = 0

    def start(self, module: str, *words: object, before: Callable[[], None] | None = None, cwd: Path = ROOT) -> Command:
        """Start ``python -m MODULE WORDS`` in a folder.

        Args:
            before: function to call first in the new process.
        """
        self._count += 1
        log = self._folder / f"{self._count:03d}-{module}"
        process = _server.Process(target=_run, args=(module, list(map(str, words)), log, cwd, before))
        process.start()
        return Command(process, log)

    def run(self, module: str, *words: object, status: int | None = 0, **choices: Any) -> Command:
        """Run a command to its end. The arguments are those of ``start``."""
        return self.start(module, *words, **choices).wait(status)


def _run(module: str, words: list[str], log: Path, cwd: Path, before: Callable[[], None] | None) -> None:
    for stream, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(f"{log}{suffix}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    gc.freeze()  # objects of the imported modules
    os.chdir(cwd)
    sys.path[:0] = [str(cwd), str(ROOT)]
    if before is not None:
        before()
    multiprocessing.set_start_method("fork", force=True)  # as in a separate process, for the data loader workers
    _become(module, words)


def _become(module: str, words: list[str]) -> None:
    sys.argv = [module, *words]
    sys.modules.pop(module, None)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except Exception:
        # As the interpreter does: fairseq_sharing prints its errors through this hook.
        sys.excepthook(*sys.exc_info())
        sys.exit(1)


def fork_trainings() -> None:
    """Make ``fairseq-sharing train`` in this process start fairseq-train as a fork with all modules imported."""
    from fairseq_sharing.training import launch

    launch.spawn = _fork


def _fork(command: list[str], output: int, inherited: object, variables: dict[str, str]) -> SimpleNamespace:
    process = multiprocessing.Process(target=_program, args=(command, output, variables))
    process.start()
    return SimpleNamespace(pid=process.pid, returncode=None)


def _program(command: list[str], output: int, variables: dict[str, str]) -> None:
    from fairseq_sharing.training.processes import PROGRAMS

    os.setsid()
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.update(variables)
    _become(PROGRAMS[command[0]], command[1:])


def fork_generation() -> None:
    """Make ``evaluate`` in this process start fairseq-generate as a fork with all modules imported."""
    from fairseq_sharing.evaluation import generation

    generation.subprocess = SimpleNamespace(Popen=_ForkedGeneration, PIPE=None)


def fork_runs() -> None:
    """Make ``fairseq-sharing study run`` in this process start the commands of its runs, and theirs, as forks."""
    from fairseq_sharing.studies import runner

    runner.subprocess = SimpleNamespace(Popen=_ForkedRun, DEVNULL=None, STDOUT=None)


class _ForkedRun:
    """The part of subprocess.Popen that studies use for a run."""

    def __init__(self, command: list[str], stdout: Any, env: dict[str, str], **_: object):
        self._process = multiprocessing.Process(target=_run_command, args=(command, stdout.fileno(), env))
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode


def _run_command(command: list[str], output: int, env: dict[str, str]) -> None:
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.update(env)
    fork_trainings()
    fork_generation()
    _become(command[3], command[4:])


class _ForkedGeneration:
    """The part of subprocess.Popen that evaluation uses."""

    def __init__(self, command: list[str], stdout: object, stderr: Any, env: dict[str, str]):
        read, write = os.pipe()
        self.stdout = open(read, "rb")  # noqa: SIM115
        self.returncode = None
        target = partial(_generate, command, write, stderr.fileno(), env)
        self._process = multiprocessing.get_context("fork").Process(target=target)
        self._process.start()
        os.close(write)

    def terminate(self) -> None:
        self._process.terminate()

    def __enter__(self) -> _ForkedGeneration:
        return self

    def __exit__(self, *_: object) -> None:
        self.stdout.close()
        self._process.join()
        self.returncode = self._process.exitcode


def _generate(command: list[str], output: int, errors: int, env: dict[str, str]) -> None:
    os.dup2(output, 1)
    os.dup2(errors, 2)
    os.closerange(3, 1000)  # as subprocess does; a lock of the evaluation would stay locked otherwise
    os.environ.update(env)
    _become(command[3], command[4:])


@contextmanager
def generate_in_fork(commands: Commands, command: list[str], **_: object) -> Iterator[SimpleNamespace]:
    """Run ``python -P -m fairseq_cli.generate ...`` to its end, as a replacement for subprocess.Popen in evaluation."""
    done = commands.run(*command[3:], cwd=Path.cwd())
    with Path(f"{done.log}.out").open("rb") as output:
        yield SimpleNamespace(stdout=output, returncode=0)


def lines_by_kind(output: str) -> dict[str, dict[int, list[str]]]:
    """Parse the lines ``KIND-NUMBER<tab>field<tab>...`` of fairseq-generate and fairseq-interactive.

    Returns:
        Kind (S, T, H, D, P) -> sentence number -> fields.
    """
    kinds: dict[str, dict[int, list[str]]] = {}
    for line in output.splitlines():
        name, *fields = line.split("\t")
        kind, _, number = name.partition("-")
        if len(kind) == 1 and number.isdigit():
            assert int(number) not in kinds.setdefault(kind, {}), f"duplicate {name}"
            kinds[kind][int(number)] = fields
    return kinds


def logged(output: str, key: str) -> list[dict]:
    """Return the lines of fairseq's JSON log that contain a key."""
    entries = (line[line.index("{") :] for line in output.splitlines() if line.endswith("}"))
    return [json.loads(entry) for entry in entries if f'"{key}"' in entry]
