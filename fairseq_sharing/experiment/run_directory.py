"""The run directory: its files, its locks and the record ``run.json``."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fairseq_sharing.documents import (
    NAME,
    Schema,
    check_document,
    is_count,
    is_name,
    is_quantity,
    is_text,
    leaves,
    list_of,
    mapping_of,
    optional,
    read_json,
    read_yaml,
)
from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.direction import Direction, direction_of
from fairseq_sharing.experiment.layers import to_config
from fairseq_sharing.files import write_text

# The lock files of a training, an evaluation, and a runner of a study.
_TRAINING, _EVALUATING, _CLAIMED = ".lock", ".evaluate.lock", ".study.lock"
# Seconds between attempts to lock.
_WAITS = (0.02, 0.05, 0.1)

RECORD_SECONDS = 10.0
"""Interval at which the training time is written while a run is trained."""

UNWATCHED_SECONDS = 60.0
"""If a log is newer than the record by more, the training went on without its launcher."""


CONFIG: Schema = {
    "run": (is_name, NAME),
    "dataset": (is_name, NAME),
    "study": (is_name, NAME),
    "map_of": (is_name, NAME),
    "from_trained": (mapping_of(lambda _: True), "a mapping"),
    "seed": (is_count, "a whole number from 0"),
    "data": (optional(is_text), "a path"),
    "tokens_per_batch": (optional(is_count), "a whole number"),
    "train": (mapping_of(lambda _: True), "a mapping"),
    "evaluate": (mapping_of(lambda _: True), "a mapping"),
}

RECORD: Schema = {
    "run": (is_name, NAME),
    "dataset": (is_name, NAME),
    "data": (is_text, "a path"),
    "dictionaries": (optional(mapping_of(is_text)), "a mapping from file to SHA-256"),
    "seed": (is_count, "a whole number from 0"),
    "source_lang": (optional(is_text), "a language code or null"),
    "target_lang": (optional(is_text), "a language code or null"),
    "command": (list_of(is_text), "a list of words"),
    "versions": (mapping_of(optional(is_text)), "a mapping from package to version"),
    "commit": (optional(is_text), "a commit or null"),
    "device": (mapping_of(lambda value: not isinstance(value, list | dict)), "a mapping with kind, name and count"),
    "world_size": (is_count, "a whole number"),
    "tokens_per_batch": (optional(is_count), "a whole number or null"),
    "batch": (is_text, "text"),
    "started": (optional(is_text), "a time"),
    "starts": (is_count, "a whole number"),
    "finished": (optional(is_text), "a time or null"),
    "exit_status": (optional(lambda value: isinstance(value, int)), "a status or null"),
    "train_seconds": (optional(is_quantity), "a number of seconds or null"),
    "peak_memory_bytes": (optional(is_count), "a whole number"),
}


@dataclass(frozen=True)
class RunDirectory:
    """The files of one training run.

    Args:
        path: the directory; it need not exist yet.
    """

    path: Path

    @property
    def config_file(self) -> Path:
        """The composed configuration."""
        return self.path / "config.yaml"

    @property
    def record_file(self) -> Path:
        """The record of the run: command, environment, start and end."""
        return self.path / "run.json"

    @property
    def log_file(self) -> Path:
        """The output of ``fairseq-train``."""
        return self.path / "train.log"

    @property
    def checkpoints(self) -> Path:
        """The checkpoint directory."""
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """The TensorBoard directory."""
        return self.path / "tensorboard"

    @property
    def evaluation(self) -> Path:
        """The directory of the translations."""
        return self.path / "evaluate"

    @property
    def steps_file(self) -> Path:
        """The inputs from which the averaged checkpoint and the translations were made."""
        return self.evaluation / "steps.json"

    @property
    def study_log(self) -> Path:
        """The output of ``train`` and ``evaluate`` when a study runs them."""
        return self.path / "study.log"

    @property
    def result_file(self) -> Path:
        """The scores, written by ``fairseq-sharing evaluate``."""
        return self.result_with("")

    def result_with(self, suffix: str) -> Path:
        """Return the file of the scores of a model at a smaller depth, which ends with a suffix such as ``-d6``."""
        return self.path / f"result{suffix}.json"

    def config(self) -> DictConfig:
        """Return the composed configuration.

        Raises:
            SharingError: the file is missing or not a configuration, or its run or dataset is a path.
        """
        if not self.config_file.is_file():
            raise SharingError(f"{self.path}: not a run directory of fairseq-sharing train: config.yaml is missing")
        content = check_document(read_yaml(self.config_file), self.config_file, CONFIG, "the configuration of a run")
        # The configuration is written resolved; in a received one, ${oc.env:...} would read this environment.
        for field, value in leaves(content):
            if isinstance(value, str) and "${" in value:
                raise SharingError(f"{self.config_file}: {field}: {value!r}; allowed: plain values, no interpolations")
        return to_config(content, self.config_file)

    def direction(self) -> Direction | None:
        """Return the recorded or configured source and target language; None if unknown."""
        return direction_of(self.record(), self.record_file) or direction_of(
            self.config().get("train", {}), self.config_file
        )

    def record(self, needed: tuple[str, ...] = ()) -> dict[str, Any]:
        """Return ``run.json``; an empty record if the run was never started.

        Its ``train_seconds`` is null if the training went on after its launcher, which measures the time, was killed.

        Args:
            needed: the required fields.

        Raises:
            SharingError: the file is not a record.
        """
        if not self.record_file.is_file():
            return {}
        record = read_json(self.record_file, RECORD, "a record of train", needed)
        if record.get("exit_status") is None and self.log_file.is_file():
            unwatched = self.log_file.stat().st_mtime - self.record_file.stat().st_mtime
            if unwatched > UNWATCHED_SECONDS:
                record["train_seconds"] = None
        return record

    def write_config(self, config: DictConfig) -> None:
        """Write the composed configuration."""
        write_text(self.config_file, OmegaConf.to_yaml(config))

    def write_record(self, record: dict[str, Any]) -> None:
        """Write the record."""
        write_text(self.record_file, json.dumps(record, indent=2, ensure_ascii=False) + "\n")

    def log_records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the log's JSON records in order.

        Yields:
            The kind (``train_inner`` each log interval, ``train`` each epoch, else the name of the validation
            subset) and the values.
        """
        if not self.log_file.is_file():
            return
        with self.log_file.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                record = parse_log_line(line)
                if record is not None:
                    yield record

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Lock the run for one training; yields the descriptor of the lock, which the training inherits.

        The lock is held as long as any process has the descriptor open, so a training keeps it if its parent is
        killed.

        Raises:
            SharingError: another training holds the lock.
        """
        with self._hold(_TRAINING, "is being trained by another process") as descriptor:
            self._remove(*(self.path.glob(f"{file.name}.*.tmp") for file in (self.config_file, self.record_file)))
            yield descriptor

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Lock the averaged checkpoint, the translations and the result for one process; a training may continue.

        Partial files of a killed evaluation are removed.

        Raises:
            SharingError: another process holds the lock.
        """
        with self._hold(_EVALUATING, "is being evaluated by another process; try again when it has ended"):
            self._remove(
                self.evaluation.glob("*.tmp"),
                self.path.glob(f"{self.result_file.stem}*.tmp"),
                self.checkpoints.glob("checkpoint_average*.tmp"),
            )
            yield

    def is_training(self) -> bool:
        """Return whether a process is training the run."""
        return self._is_held(_TRAINING)

    def is_evaluating(self) -> bool:
        """Return whether a process is evaluating the run."""
        return self._is_held(_EVALUATING)

    def claim(self) -> int | None:
        """Claim the run for one runner of a study, which trains and evaluates it.

        Returns:
            The descriptor of the lock, to be closed at the end; None if another runner has claimed the run.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path / _CLAIMED, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if _try_lock(descriptor, fcntl.LOCK_EX):
            return descriptor
        os.close(descriptor)
        return None

    def _is_held(self, name: str) -> bool:
        try:
            descriptor = os.open(self.path / name, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            return not _try_lock(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)

    @contextmanager
    def _hold(self, name: str, taken: str) -> Iterator[int]:
        """Acquire one of the locks, or raise an error that says what its holder is doing."""
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path / name, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            # Another process may be looking at the lock for an instant.
            for wait in _WAITS:
                if _try_lock(descriptor, fcntl.LOCK_EX):
                    break
                time.sleep(wait)
            else:
                raise SharingError(f"{self.path}: {taken}")
            yield descriptor
        finally:
            os.close(descriptor)

    @staticmethod
    def _remove(*left_over: Iterable[Path]) -> None:
        for file in itertools.chain(*left_over):
            file.unlink(missing_ok=True)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def default_directory(config: DictConfig, runs: Path, row: str | None = None) -> Path:
    """Return the default directory of a run.

    Args:
        config: the composed configuration.
        runs: the directory of all runs.
        row: another row of the same study; the row of the configuration if None.
    """
    return runs / (config.get("study") or config.dataset) / f"{row or config.run}-seed{config.seed}"


def parse_log_line(line: str) -> tuple[str, dict[str, Any]] | None:
    """Split a line of fairseq's log into its kind and its JSON record; None for any other line."""
    head, brace, tail = line.partition("{")
    if not brace or not line.rstrip().endswith("}"):
        return None
    try:
        record = json.loads(brace + tail)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    fields = [field.strip() for field in head.split("|")]
    return (fields[2] if len(fields) > 2 else ""), record
