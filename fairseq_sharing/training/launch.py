"""Run ``fairseq-train`` on a composed configuration, follow it, and keep what it did."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from fairseq_sharing.errors import SharingError
from fairseq_sharing.resources import PACKAGE_DIR
from fairseq_sharing.training import config as configuration
from fairseq_sharing.training import environment
from fairseq_sharing.training.log_tail import LogTail
from fairseq_sharing.training.progress import TrainingProgress
from fairseq_sharing.training.run_directory import RunDirectory, config_changes, refuse_changed

POLL_SECONDS = 0.2
# What a training gets to end by itself after a signal, or after another rank failed.
GRACE_SECONDS = 30.0

Process = subprocess.Popen  # of bytes: what it writes goes straight into the log file


@dataclass(frozen=True)
class Plan:
    """One training, ready to start.

    Args:
        config: the composed configuration.
        run: where it is kept.
        data: the data directory, made by ``fairseq-sharing prepare``.
        devices: how many processes train, one a GPU or, without a GPU, one a share of the CPU cores.
        cuda: whether they train on GPUs.
    """

    config: DictConfig
    run: RunDirectory
    data: Path
    devices: int
    cuda: bool

    def words(self) -> list[str]:
        """Return the arguments of ``fairseq-train``, without those that tell the ranks apart."""
        train = dict(self.config.train)
        if self.manifest().get("target_lang"):  # which the data of a language model do not have
            train.setdefault("source_lang", self.manifest()["source_lang"])
            train.setdefault("target_lang", self.manifest()["target_lang"])
        train["update_freq"] = configuration.update_freq(self.config, self.devices)
        words = [
            str(self.data / "bin"),
            *("--user-dir", str(PACKAGE_DIR)),
            *configuration.fairseq_arguments(train),
            *("--seed", str(self.config.seed)),
            *("--save-dir", str(self.run.checkpoints)),
            *("--tensorboard-logdir", str(self.run.tensorboard)),
            *("--log-format", "json"),
            *("--distributed-world-size", str(self.devices)),
        ]
        return words if self.cuda else [*words, "--cpu"]

    def commands(self) -> list[list[str]]:
        """Return the plain command of each process to start.

        On GPUs fairseq starts the ranks itself. Without a GPU it would train one independent job a process:
        its world size defaults to the number of GPUs, so every rank is told rank, size and meeting point.
        """
        command = ["fairseq-train", *self.words()]
        if self.cuda or self.devices == 1:
            return [command]
        common = [
            *("--distributed-init-method", f"tcp://localhost:{_free_port()}"),
            "--distributed-no-spawn",
            *("--distributed-backend", "gloo"),
            *("--ddp-backend", "legacy_ddp"),
        ]
        return [[*command, *common, "--distributed-rank", str(rank)] for rank in range(self.devices)]

    def tokens_per_batch(self) -> int | None:
        """Return the most tokens an update sees; None when batches are counted in sentences."""
        return configuration.tokens_per_batch(self.config, self.devices)

    def batch(self) -> str:
        """Return in words what one update sees."""
        steps, tokens = configuration.update_freq(self.config, self.devices) or 1, self.tokens_per_batch()
        train = self.config.train
        per_step = f"{train.max_tokens:,} tokens" if tokens else f"{train.get('batch_size')} sentences"
        total = f"{tokens:,} tokens per batch = " if tokens else ""
        return f"{total}{per_step} x {self.devices} device{'s' * (self.devices > 1)} x update_freq {steps}"

    def manifest(self) -> dict[str, Any]:
        """Return the data directory's manifest; empty when it has none."""
        file = self.data / "manifest.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def make_plan(
    config: DictConfig,
    *,
    run: Path | None = None,
    runs: Path = Path("runs"),
    data: Path | None = None,
    devices: int | None = None,
) -> Plan:
    """Settle where a training lies, on what data and on which devices.

    Args:
        config: the composed configuration.
        run: the run directory; ``<runs>/<dataset>/<run>-seed<seed>`` when None.
        runs: the directory of all runs.
        data: the data directory; the configuration's ``data``, else ``data/<dataset>``, when None.
        devices: number of GPUs, or of CPU processes without one; every GPU, or one process, when None.

    Raises:
        SharingError: for more devices than there are, or a batch that they cannot make up.
    """
    here = environment.device()
    cuda = here["kind"] == "cuda" and not config.train.get("cpu")
    most = here["count"] if cuda else environment.cpu_cores()
    devices = devices if devices is not None else (most if cuda else 1)
    if not 1 <= devices <= most:
        raise SharingError(
            f"--devices must be between 1 and {most} ({'GPUs' if cuda else 'CPU cores'} here), got {devices}"
        )
    configuration.update_freq(config, devices)
    directory = run or runs / config.dataset / f"{config.run}-seed{config.seed}"
    data = data or Path(config.get("data") or Path("data") / config.dataset)
    return Plan(config, RunDirectory(directory), data, devices, cuda)


def train(plan: Plan, console: Console) -> None:
    """Train, or go on with a training that was interrupted; a finished one is left as it is.

    Args:
        plan: the training.
        console: where progress is shown.

    Raises:
        SharingError: when the data is missing, the run was started with another recipe or is being trained by
            another process, or ``fairseq-train`` fails.
        KeyboardInterrupt: after an interrupt, when ``fairseq-train`` has ended.
    """
    if not (plan.data / "bin").is_dir():
        raise SharingError(
            f"data directory {plan.data}: no binarised data in it; "
            f"make it with: fairseq-sharing prepare {plan.config.dataset} --out {plan.data}"
        )
    run = plan.run
    with run.locked() as lock:
        # Before its first checkpoint a run is nothing yet: a mistake in its configuration can be put right.
        record = run.record() if any(run.checkpoints.glob("checkpoint*.pt")) else {}
        if record:
            refuse_changed(run, plan.config)
            if (record["tokens_per_batch"] or record["batch"]) != (plan.tokens_per_batch() or plan.batch()):
                raise SharingError(f"{run.path} was started with {record['batch']}; now: {plan.batch()}")
            changed = config_changes(run.config(), plan.config)
            if record["exit_status"] == 0 and not any(key.startswith("train.") for key in changed):
                console.print(
                    f"{run.path}: finished {record['finished']}; nothing to do",
                    highlight=False,
                    soft_wrap=True,
                )
                return
        if not record:
            run.log_file.unlink(missing_ok=True)
        run.write_config(plan.config)
        commands = plan.commands()
        record = _start(plan, commands[0], record)
        run.write_record(record)
        _say(plan, commands[0], console)
        _follow(plan, commands, record, lock, console)


def _start(plan: Plan, command: list[str], before: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a run that starts now, or again."""
    return {
        "run": plan.config.run,
        "dataset": plan.config.dataset,
        "data": str(plan.data.resolve()),
        "seed": plan.config.seed,
        "source_lang": _value(command, "--source-lang"),
        "target_lang": _value(command, "--target-lang"),
        "command": command,
        "versions": environment.versions(),
        "commit": environment.commit(),
        "device": environment.device(),
        "world_size": plan.devices,
        "tokens_per_batch": plan.tokens_per_batch(),
        "batch": plan.batch(),
        "started": before.get("started") or _now(),
        "starts": before.get("starts", 0) + 1,
        "finished": None,
        "exit_status": None,
        "train_seconds": before.get("train_seconds", 0.0),
        "peak_memory_bytes": before.get("peak_memory_bytes", 0),
    }


def _say(plan: Plan, command: list[str], console: Console) -> None:
    one, many = ("GPU", "GPUs") if plan.cuda else ("CPU process", "CPU processes")
    resumed = " (going on from its last checkpoint)" if (plan.run.checkpoints / "checkpoint_last.pt").is_file() else ""
    console.print(f"$ {shlex.join(command)}", style="dim", highlight=False, soft_wrap=True, markup=False)
    console.print(
        f"{plan.run.path}{resumed}: world size {plan.devices} ({one if plan.devices == 1 else many}), {plan.batch()}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _follow(plan: Plan, commands: list[list[str]], record: dict[str, Any], lock: int, console: Console) -> None:
    """Run the processes to their end and complete the record."""
    run, began, before = plan.run, time.monotonic(), record["train_seconds"]
    with (
        run.log_file.open("ab") as output,
        TrainingProgress(console, plan.config.run, plan.config) as progress,
    ):
        tail = LogTail(run.log_file, progress)
        processes = [_spawn(command, plan, output.fileno(), lock) for command in commands]
        with _forwarded_signals(processes) as received:
            failed = _wait(processes, record, tail, received)
        tail.read()
    status = failed.returncode if failed else 0
    record["train_seconds"] = round(before + time.monotonic() - began, 1)
    if plan.cuda:
        record["peak_memory_bytes"] = tail.peak_gpu_bytes(record["device"]["memory_bytes"])
    record["exit_status"] = status
    record["finished"] = _now() if status == 0 else None
    run.write_record(record)
    if received:
        raise KeyboardInterrupt if received[0] == signal.SIGINT else SystemExit(128 + received[0])
    if status:
        raise SharingError(f"fairseq-train failed: {tail.error(status)} (log: {run.log_file})")
    console.print(f"{run.path}: finished; {tail.summary()}", highlight=False, markup=False, soft_wrap=True)


def _wait(processes: list[Process], record: dict[str, Any], tail: LogTail, received: list[int]) -> Process | None:
    """Wait for all processes; returns the first that failed. One that fails, or a signal, ends the others."""
    failed, kill_at = None, None
    while any([_poll(process, record) is None for process in processes]):
        tail.read()
        failed = failed or next((process for process in processes if process.returncode), None)
        if kill_at is None and (failed or received):
            kill_at = time.monotonic() + GRACE_SECONDS
            _signal_all(processes, signal.SIGTERM if failed else received[0])
        if kill_at is not None and time.monotonic() > kill_at:
            _signal_all(processes, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    return failed or next((process for process in processes if process.returncode), None)


def _spawn(command: list[str], plan: Plan, output: int, lock: int) -> Process:
    variables = dict(os.environ)
    if not plan.cuda and plan.devices > 1:
        variables.setdefault("OMP_NUM_THREADS", str(max(1, environment.cpu_cores() // plan.devices)))
    return subprocess.Popen(
        # -P: a test.py in the directory that a user trains in must not stand for the standard library's.
        [sys.executable, "-P", "-m", "fairseq_cli.train", *command[1:]],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=variables,
        pass_fds=(lock,),
        # A session of its own: a terminal's Ctrl-C comes once, forwarded, instead of twice.
        start_new_session=True,
    )


def _poll(process: Process, record: dict[str, Any]) -> int | None:
    """Return a process's exit status, None while it runs; its peak memory goes into the record."""
    if process.returncode is None:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            # ru_maxrss: bytes on macOS, KiB elsewhere
            peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
            record["peak_memory_bytes"] = max(record["peak_memory_bytes"], peak)
    return process.returncode


@contextlib.contextmanager
def _forwarded_signals(processes: list[Process]) -> Iterator[list[int]]:
    """Pass SIGINT and SIGTERM on to the training; yields the list of those received."""
    received: list[int] = []

    def forward(number: int, frame: object) -> None:
        received.append(number)
        _signal_all(processes, number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _signal_all(processes: list[Process], number: int) -> None:
    for process in processes:
        if process.returncode is None:
            # The whole session: the ranks that fairseq starts and the loader workers too.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def _value(command: list[str], flag: str) -> str | None:
    return command[command.index(flag) + 1] if flag in command else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
