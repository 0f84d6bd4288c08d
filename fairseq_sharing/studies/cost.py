"""Estimate the cost of a study before training: device hours and disk space."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from fairseq_sharing import flags
from fairseq_sharing.description import counts
from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.config import compose
from fairseq_sharing.experiment.study import Study
from fairseq_sharing.studies.plan import StudyPlan

# Assumptions of the estimate. Sustained throughput of a GPU in bf16, TFLOP/s.
TFLOPS = 40.0
# Subwords per target sentence of news text, including the end symbol.
TOKENS_A_PAIR = 30
# Bytes per pair in all stages: raw, cleaned, tokenized, subwords, binarized.
BYTES_A_PAIR = 2_000
# A backward pass takes twice the operations of the forward pass; a MAC counts as two operations.
FLOPS_A_MAC = 6
# Bytes per parameter in a checkpoint: the weight and Adam's two moments, 4 bytes each.
CHECKPOINT_BYTES = 12


@dataclass(frozen=True)
class RowEstimate:
    """The cost of one run of a row.

    Args:
        run: the name of the row.
        parameters: unique parameters.
        tokens: target tokens in training.
        flops: floating-point operations in training.
        disk: bytes of its checkpoints.
    """

    run: str
    parameters: int
    tokens: int
    flops: float
    disk: int

    def device_hours(self, tflops: float = TFLOPS) -> float:
        """Return device hours at the given sustained TFLOP/s; divide by the number of devices for wall time."""
        return self.flops / (tflops * 1e12) / 3600


def estimate_rows(plan: StudyPlan) -> list[RowEstimate]:
    """Estimate one run of each row of a study, except for rows with the map of another.

    Raises:
        SharingError: the study does not give the size of its data and vocabulary.
    """
    given = plan.study.estimate
    if "vocabulary" not in given or not {"pairs", "tokens"} & given.keys():
        raise SharingError(f"{plan.study.file}: estimate: required: vocabulary, and pairs or tokens per epoch")
    skipped = {*plan.study.map_of, *plan.study.checkpoints}
    return [_estimate(row, plan) for row in plan.chosen_rows() if row not in skipped]


def data_bytes(study: Study) -> int:
    """Estimate the disk space of the prepared data, in bytes."""
    return _tokens_per_epoch(study) // TOKENS_A_PAIR * BYTES_A_PAIR


def measured_hours(plan: StudyPlan, row: str) -> float | None:
    """Return the mean recorded training time of a row's finished runs, in hours; None if there are none."""
    records = [run.directory.record() for run in plan.runs if run.row == row]
    seconds = [float(record.get("train_seconds") or 0) for record in records if record.get("exit_status") == 0]
    known = [each for each in seconds if each]
    return sum(known) / len(known) / 3600 if known else None


def _tokens_per_epoch(study: Study) -> int:
    return study.estimate.get("tokens") or study.estimate["pairs"] * TOKENS_A_PAIR


def _tokens_per_update(config: DictConfig) -> int:
    """Return the target tokens of an update on one device, at most."""
    train = config.train
    if config.get("tokens_per_batch"):
        return config.tokens_per_batch
    if train.get("max_tokens"):
        return train.max_tokens
    return (train.get("batch_size") or 1) * (train.get("tokens_per_sample") or TOKENS_A_PAIR)


def _estimate(row: str, plan: StudyPlan) -> RowEstimate:
    config = compose(plan.study.file, [f"row={row}", *plan.overrides])
    train, sizes = config.train, plan.study.estimate
    data = Path("data") / plan.study.data.name
    vocabulary = counts.vocabulary_size(data) if (data / "bin").is_dir() else sizes["vocabulary"]
    model = counts.measure(str(config.run), flags.parse(train), vocabulary, TOKENS_A_PAIR)
    tokens = (train.get("max_epoch") or 0) * _tokens_per_epoch(plan.study)
    if train.get("max_update"):
        updates = train.max_update * _tokens_per_update(config)
        tokens = min(tokens, updates) if tokens else updates
    parameters = sum(model.unique.values())
    kept = (train.get("keep_last_epochs") or 1) + (train.get("keep_interval_updates") or 0) + 2  # plus last and best
    return RowEstimate(
        run=str(config.run),
        parameters=parameters,
        tokens=tokens,
        flops=FLOPS_A_MAC * model.macs / TOKENS_A_PAIR * tokens,
        disk=CHECKPOINT_BYTES * parameters * kept,
    )
