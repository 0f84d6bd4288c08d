"""Estimate the cost of a table before training: device hours and disk space."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fairseq_sharing import flags
from fairseq_sharing.description import counts
from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.config import compose
from fairseq_sharing.experiment.study import Study
from fairseq_sharing.studies.table import Table

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


def estimate_rows(table: Table) -> list[RowEstimate]:
    """Estimate one run of each row of a table.

    Raises:
        SharingError: the study does not give the number of pairs or the vocabulary of its data.
    """
    for key in ("pairs", "vocabulary"):
        if key not in table.study.estimate:
            raise SharingError(f"{table.study.file}: estimate.{key}: missing; required for an estimate")
    return [_estimate(row, table) for row in table.chosen_rows() if row not in table.study.map_of]


def data_bytes(study: Study) -> int:
    """Estimate the disk space of the prepared data, in bytes."""
    return study.estimate["pairs"] * BYTES_A_PAIR


def _estimate(row: str, table: Table) -> RowEstimate:
    config = compose(table.study.file, [f"row={row}", *table.overrides])
    train, sizes = config.train, table.study.estimate
    data = Path("data") / table.study.data.name
    vocabulary = counts.vocabulary_size(data) if (data / "bin").is_dir() else sizes["vocabulary"]
    model = counts.measure(str(config.run), flags.parse(train), vocabulary, TOKENS_A_PAIR)
    tokens = (train.get("max_epoch") or 0) * sizes["pairs"] * TOKENS_A_PAIR
    if train.get("max_update"):
        updates = train.max_update * (config.get("tokens_per_batch") or train.max_tokens)
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
