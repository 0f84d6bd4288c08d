"""Run ``fairseq-train`` on a composed configuration, follow its log and record the run."""

from __future__ import annotations

import shlex
import time
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.bleu_tokenizer import check_tokenizer
from fairseq_sharing.evaluation.settings import EvaluationSettings
from fairseq_sharing.experiment import environment
from fairseq_sharing.experiment.changes import config_changes, refuse_changed
from fairseq_sharing.experiment.dictionaries import dictionary_hashes, refuse_other_dictionaries
from fairseq_sharing.experiment.direction import refuse_other_direction
from fairseq_sharing.experiment.run_directory import RECORD_SECONDS, RunDirectory
from fairseq_sharing.interruption import Interruption
from fairseq_sharing.terminal import say
from fairseq_sharing.training.from_trained import write_tied
from fairseq_sharing.training.log_tail import LogTail
from fairseq_sharing.training.plan import Plan
from fairseq_sharing.training.processes import end, forwarded_signals, raise_signal, spawn, wait
from fairseq_sharing.training.progress import TrainingProgress

NEEDED = ("tokens_per_batch", "batch", "finished", "exit_status")  # fields of a record to resume from
STATUS_OF_FAILURE = 2  # the command itself failed, with one line on stderr


def train(plan: Plan, console: Console) -> None:
    """Train, or resume an interrupted run. A finished run is left unchanged.

    Args:
        plan: the planned run.
        console: where progress is printed.

    Raises:
        SharingError: the data is missing, the run was started with a different configuration, another process is
            training it, its translations could not be scored, or ``fairseq-train`` fails.
        KeyboardInterrupt: after an interrupt, when ``fairseq-train`` has ended.
    """
    if not (plan.data / "bin").is_dir():
        raise SharingError(
            f"data directory {plan.data}: no binarized data; "
            f"create it with: fairseq-sharing prepare {plan.config.dataset} --out {plan.data}"
        )
    run = plan.run
    if plan.machines.node_rank:
        _join(plan, console)
        return
    with run.locked() as lock:
        # Until a run has a checkpoint, its configuration may still be corrected.
        record = run.record(NEEDED) if any(run.checkpoints.glob("checkpoint*.pt")) else {}
        if record:
            refuse_changed(run, plan.config)
            refuse_other_direction(run.direction(), plan.direction(), run.path, plan.data)
            refuse_other_dictionaries(record.get("dictionaries"), plan.data, run.path)
            if (record["tokens_per_batch"] or record["batch"]) != (plan.tokens_per_batch() or plan.batch()):
                raise SharingError(f"{run.path}: was started with {record['batch']}; now: {plan.batch()}")
            if _is_finished(plan, record):
                say(console, f"{run.path}: finished {record['finished']}; nothing to do")
                return
        check_scorer(plan)
        if not record:
            run.log_file.unlink(missing_ok=True)
        run.write_config(plan.config)
        write_tied(plan.config, run)
        command = plan.command()
        before, record = record, _start(plan, record)
        run.write_record(record)
        _print_start(plan, command, console)
        _print_other_device(before, record, console)
        _follow(plan, command, record, lock, console)


def check_scorer(plan: Plan) -> None:
    """Check before training that the translations can be scored afterwards."""
    settings, target_lang = EvaluationSettings.of(plan.config.evaluate), plan.manifest().get("target_lang")
    if target_lang:
        check_tokenizer(target_lang, settings.tokenize)


def _is_finished(plan: Plan, record: dict[str, Any]) -> bool:
    """Return whether a run has finished successfully and the configuration asks for no further training."""
    changed = config_changes(plan.run.config(), plan.config)
    return record["exit_status"] == 0 and not any(key.startswith("train.") for key in changed)


def _join(plan: Plan, console: Console) -> None:
    """Run this machine's ranks. Only the first machine writes the record."""
    run, command = plan.run, plan.command()
    record = run.record(NEEDED) if any(run.checkpoints.glob("checkpoint*.pt")) else {}
    if record and _is_finished(plan, record):
        say(console, f"{run.path}: finished {record['finished']}; nothing to do")
        return
    _print_start(plan, command, console)
    log = run.path / f"train.node{plan.machines.node_rank}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("ab") as output,
        TrainingProgress(console, plan.config.run, plan.config) as progress,
        closing(LogTail(log, progress)) as tail,
    ):
        process = spawn(command, output.fileno(), (), plan.variables())
        with forwarded_signals(process) as received:
            status = wait(process, {"peak_memory_bytes": 0}, tail.read, received)
        tail.read()
    _raise_failure(status, received, tail, log)


def _start(plan: Plan, before: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a run that is being started or resumed."""
    command = ["fairseq-train", *plan.words()]
    source, target = plan.direction() or (None, None)
    device = environment.training_device(plan.threads())
    earlier = before.get("earlier_devices", [])
    if before and not environment.rounds_alike(before["device"], device):
        earlier = [*earlier, before["device"]]
    return {
        "run": plan.config.run,
        "dataset": plan.config.dataset,
        "data": str(plan.data.resolve()),
        "dictionaries": before.get("dictionaries") or dictionary_hashes(plan.data),
        "seed": plan.config.seed,
        "source_lang": source,
        "target_lang": target,
        "command": command,
        "versions": environment.versions(),
        "commit": environment.commit(),
        "device": device,
        "earlier_devices": earlier,
        "world_size": plan.world_size,
        "tokens_per_batch": plan.tokens_per_batch(),
        "batch": plan.batch(),
        "started": before.get("started") or _now(),
        "starts": before.get("starts", 0) + 1,
        "finished": None,
        "exit_status": None,
        "train_seconds": before.get("train_seconds", 0.0),
        "peak_memory_bytes": before.get("peak_memory_bytes", 0),
    }


def _print_start(plan: Plan, command: list[str], console: Console) -> None:
    resumed = " (resuming from its last checkpoint)" if (plan.run.checkpoints / "checkpoint_last.pt").is_file() else ""
    say(console, f"$ {shlex.join(command)}", "dim")
    say(console, f"{plan.run.path}{resumed}: {plan.world()}, {plan.batch()}")


def _print_other_device(before: dict[str, Any], record: dict[str, Any], console: Console) -> None:
    """Report a resumed run whose results will differ by rounding from those of an uninterrupted run."""
    if before and not environment.rounds_alike(before["device"], record["device"]):
        say(
            console,
            f"resuming on {_describe_device(record['device'])}; the run was last trained on "
            f"{_describe_device(before['device'])}, so its results differ by rounding from an uninterrupted run's",
        )


def _describe_device(device: dict[str, Any]) -> str:
    return ", ".join(
        [str(device["name"]), f"{device.get('threads', 'unknown')} threads"]
        + [str(device[key]) for key in ("instructions", "cuda") if device.get(key)]
    )


def _follow(plan: Plan, command: list[str], record: dict[str, Any], lock: int, console: Console) -> None:
    """Run the training process until it ends and complete the record."""
    run, clock = plan.run, _Clock(plan.run, record)
    try:
        with (
            run.log_file.open("ab") as output,
            TrainingProgress(console, plan.config.run, plan.config) as progress,
            closing(LogTail(run.log_file, progress)) as tail,
        ):

            def poll() -> None:
                tail.read()
                clock.tick()

            process = spawn(command, output.fileno(), (lock,), plan.variables())
            try:
                with forwarded_signals(process) as received:
                    status = wait(process, record, poll, received)
            finally:
                end(process)
            tail.read()
    except BaseException as error:
        record["exit_status"] = error.status if isinstance(error, Interruption) else STATUS_OF_FAILURE
        clock.stop()
        raise
    if plan.cuda:
        record["peak_memory_bytes"] = tail.peak_gpu_bytes(record["device"]["memory_bytes"])
    record["exit_status"] = status
    record["finished"] = _now() if status == 0 else None
    clock.stop()
    _raise_failure(status, received, tail, run.log_file)
    if not plan.config.train.get("no_save") and not any(run.checkpoints.glob("checkpoint*.pt")):
        raise SharingError(f"{run.path}: fairseq-train succeeded but wrote no checkpoint (log: {run.log_file})")
    say(console, f"{run.path}: finished; {tail.summary()}")


class _Clock:
    """Measures the training time of a run and writes it into its record, also in case this process is killed.

    A time of null, because an earlier part was not measured, stays null.
    """

    def __init__(self, run: RunDirectory, record: dict[str, Any]):
        self._run, self._record, self._before = run, record, record["train_seconds"]
        self._began = self._written = time.monotonic()

    def tick(self) -> None:
        """Write the record if it is time."""
        if time.monotonic() - self._written >= RECORD_SECONDS:
            self.stop()

    def stop(self) -> None:
        """Write the record."""
        self._written = time.monotonic()
        if self._before is not None:
            self._record["train_seconds"] = round(self._before + self._written - self._began, 1)
        self._run.write_record(self._record)


def _raise_failure(status: int, received: list[int], tail: LogTail, log: Any) -> None:
    """Raise for a received signal or a failed training; return if neither occurred."""
    raise_signal(received)
    if status:
        raise SharingError(f"fairseq-train failed: {tail.error(status)} (log: {log})")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
