"""Evaluate checkpoints that plain ``fairseq-train`` wrote, without a run directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.averages import last_epoch_checkpoints
from fairseq_sharing.evaluation.test_data import EvaluationData, plain_data, prepared_data
from fairseq_sharing.experiment.direction import Direction, direction_of, inferred_direction
from fairseq_sharing.experiment.layers import check_name
from fairseq_sharing.experiment.run_directory import RunDirectory


@dataclass(frozen=True)
class PlainData:
    """Data of a plain fairseq setup, as given on the command line.

    Attributes:
        binarized: the output of fairseq-preprocess.
        tests: test sets as ``NAME=SUBSET,REFERENCE``.
        detokenizer: see `plain_data`.
        dataset: the name of the data; by default that of the directory.
    """

    binarized: Path
    tests: Sequence[str]
    detokenizer: str | None = None
    dataset: str | None = None


@dataclass(frozen=True)
class CheckpointDirectory(RunDirectory):
    """The ``--save-dir`` of ``fairseq-train``, evaluated like a run directory.

    The average, the translations and the result are written to the directory itself.

    Attributes:
        name: name of the run in results.
        dataset: name of the data.
        task: the task of the training.
        seed: the seed of the training.
        trained: the direction in the checkpoint; None if fairseq-train inferred it from the data.
    """

    name: str
    dataset: str
    task: str
    seed: int
    trained: Direction | None

    @property
    def checkpoints(self) -> Path:
        """The checkpoint directory."""
        return self.path

    def direction(self) -> Direction | None:
        """Return the direction in the checkpoint."""
        return self.trained

    def config(self) -> DictConfig:
        """Return what the configuration of a run directory would contain."""
        known = {"run": self.name, "dataset": self.dataset, "seed": self.seed, "train": {"task": self.task}}
        return OmegaConf.create(known)

    def record(self, needed: tuple[str, ...] = ()) -> dict[str, Any]:
        """Return a record of only that the training has ended: no further checkpoints are expected."""
        return {"finished": "unknown"}


def is_checkpoint_directory(path: Path) -> bool:
    """Return whether a directory contains checkpoints but is not a run directory."""
    return not RunDirectory(path).config_file.is_file() and any(path.glob("checkpoint*.pt"))


def open_checkpoints(
    path: Path, data: Path | PlainData, name: str | None = None
) -> tuple[CheckpointDirectory, EvaluationData]:
    """Open a directory of checkpoints and its test sets.

    Args:
        path: the directory.
        data: a prepared data directory, or the data of a plain fairseq setup.
        name: name of the run in results; by default that of the directory.

    Returns:
        The directory, and the test sets.

    Raises:
        SharingError: there is no epoch checkpoint, it is not one of a translation model, or the description of the data
            is malformed.
    """
    from fairseq_sharing.checkpoints.arguments import seed, task_arguments
    from fairseq_sharing.checkpoints.files import load_checkpoint

    run = check_name(name or path.resolve().name, "--run")
    (newest,) = last_epoch_checkpoints(path, 1)
    checkpoint = load_checkpoint(newest)
    task = task_arguments(checkpoint)
    kind = str(task.get("_name") or task.get("task"))
    if "source_lang" not in task or task.get("lang_pairs"):
        raise SharingError(f"{newest}: was trained for the task {kind}; allowed: translation of one language pair")
    trained = direction_of(task, newest)
    found = prepared_data(data) if isinstance(data, Path) else _plain(data, trained)
    return CheckpointDirectory(path, run, found.dataset, kind, seed(checkpoint), trained), found


def _plain(data: PlainData, trained: Direction | None) -> EvaluationData:
    direction = trained or inferred_direction(data.binarized)
    if direction is None:
        raise SharingError(
            f"{data.binarized}: no file that names its languages; allowed: the output of fairseq-preprocess"
        )
    dataset = check_name(data.dataset or data.binarized.resolve().name, "--dataset")
    return plain_data(data.binarized, direction, data.tests, data.detokenizer, dataset)
