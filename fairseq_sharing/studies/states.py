"""Derive the state of each run of a study from its run directory; no state is kept elsewhere."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.changes import config_changes
from fairseq_sharing.experiment.run_directory import RunDirectory, parse_log_line
from fairseq_sharing.finite import as_number
from fairseq_sharing.reporting.results import read_result
from fairseq_sharing.studies.plan import PlannedRun, StudyPlan

# The end of a log that contains its last records: bytes.
_TAIL = 65_536
# Exit statuses of a training that was stopped, not broken: negative for the signal itself.
_STOPPED = {
    sign * number + 128 * (sign > 0) for sign in (1, -1) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
}


class State(StrEnum):
    """What has happened to a run."""

    WAITING = "waiting"
    TRAINING = "training"
    STOPPED = "stopped"
    FAILED = "failed"
    TRAINED = "trained"
    EVALUATING = "evaluating"
    FINISHED = "finished"


@dataclass(frozen=True)
class RunState:
    """The state of one run.

    Attributes:
        state: the state.
        fraction: fraction of the training that is done, 0 to 1.
        epoch: the current epoch; 0 before the first log record.
        updates: the updates so far.
        tokens_per_second: the result's training speed, before the evaluation the last logged one; 0 if unknown.
        seconds: recorded training time; 0 if unknown.
        scores: the result's scores per test set; empty before the evaluation.
    """

    state: State
    fraction: float = 0.0
    epoch: int = 0
    updates: int = 0
    tokens_per_second: float = 0.0
    seconds: float = 0.0
    scores: Mapping[str, Any] | None = None


def read_state(plan: StudyPlan, run: PlannedRun) -> RunState:
    """Read the state of a run from disk."""
    if plan.is_trained_elsewhere(run):
        return _read_checkpoints(run.directory, plan.results)
    return read_directory(run.directory, plan.compose(run), plan.results)


def read_directory(run: RunDirectory, wanted: DictConfig | None, results: Path | None) -> RunState:
    """Read the state of a run directory.

    Args:
        run: the run directory.
        wanted: the configuration to train with; a run that was trained with other settings has to continue. None for
            the run's own.
        results: directory that must contain the result of a finished run; None if the run directory is enough.
    """
    record = run.record() if run.record_file.is_file() else {}
    progress = _progress(run, wanted if wanted is not None else (run.config() if run.config_file.is_file() else None))
    seconds = float(record.get("train_seconds") or 0)
    if run.is_training():
        return RunState(State.TRAINING, **progress, seconds=seconds)
    status = record.get("exit_status")
    if not record:
        return RunState(State.WAITING)
    if status != 0:
        stopped = status is None or status in _STOPPED
        return RunState(State.STOPPED if stopped else State.FAILED, **progress, seconds=seconds)
    if wanted is not None and _has_other_settings(run, wanted):
        return RunState(State.STOPPED, **progress, seconds=seconds)
    progress["fraction"] = 1.0
    if run.is_evaluating():
        return RunState(State.EVALUATING, **progress, seconds=seconds)
    result = _result(run, record, results)
    if result is None:
        return RunState(State.TRAINED, **progress, seconds=seconds)
    progress["tokens_per_second"] = float(result["tokens_per_second"] or 0)
    return RunState(State.FINISHED, **progress, seconds=seconds, scores=result["scores"])


def _read_checkpoints(run: RunDirectory, results: Path) -> RunState:
    """Read the state of a checkpoint directory of plain ``fairseq-train``."""
    if run.is_evaluating():
        return RunState(State.EVALUATING, 1.0)
    result = _result(run, None, results)
    if result is not None:
        return RunState(State.FINISHED, 1.0, scores=result["scores"])
    # Without checkpoints, evaluate reports what is missing.
    return RunState(State.TRAINED, 1.0)


def last_records(run: RunDirectory) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the JSON records at the end of a run's log, the last one first."""
    if not run.log_file.is_file():
        return
    with run.log_file.open("rb") as file:
        file.seek(max(0, run.log_file.stat().st_size - _TAIL))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    for line in reversed(lines):
        record = parse_log_line(line)
        if record is not None:
            yield record


def _progress(run: RunDirectory, config: DictConfig | None) -> dict[str, Any]:
    record = next((record for kind, record in last_records(run) if kind == "train_inner"), {})
    if config is None or not record:
        return {}
    train = config.get("train") or {}
    done = {name: as_number(record.get(name)) or 0.0 for name in ("update", "epoch", "num_updates", "wps")}
    ends = ((done["update"], train.get("max_epoch")), (done["num_updates"], train.get("max_update")))
    parts = [updates / end for updates, limit in ends if (end := as_number(limit))]
    return {
        "fraction": min(1.0, max(parts, default=0.0)),
        "epoch": int(done["epoch"]),
        "updates": int(done["num_updates"]),
        "tokens_per_second": done["wps"],
    }


def _has_other_settings(run: RunDirectory, wanted: DictConfig) -> bool:
    changed = [key for key in config_changes(run.config(), wanted) if key.startswith("train.")]
    if wanted.get("map_of"):  # ``train`` added the maps of the other row
        changed = [key for key in changed if not key.endswith(("_sharing", "_layer_map"))]
    return bool(changed)


def _result(run: RunDirectory, record: Mapping[str, Any] | None, results: Path | None) -> dict[str, Any] | None:
    """Return the result if it is copied to the results and, given a record, is of the last training."""
    if not run.result_file.is_file():
        return None
    try:
        result = read_result(run.result_file)
        copied = results is None or _same(run.result_file, results / f"{result['run']}-seed{result['seed']}.json")
    except (SharingError, json.JSONDecodeError):
        return None
    current = record is None or result.get("train_seconds") == record.get("train_seconds")
    return result if copied and current else None


def _same(file: Path, copy: Path) -> bool:
    return copy.is_file() and copy.read_bytes() == file.read_bytes()
