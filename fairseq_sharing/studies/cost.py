"""Estimate before anything is trained what a table costs: device hours and disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fairseq_sharing import flags
from fairseq_sharing.description import counts
from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.config import compose
from fairseq_sharing.experiment.study import Study
from fairseq_sharing.studies.table import Table

# Assumptions, all told beside the estimate. Sustained arithmetic of a GPU in bf16, TFLOP/s.
TFLOPS = 40.0
# Subwords of a target sentence of news text, its end included.
TOKENS_A_PAIR = 30
# Bytes of a pair in all its stages: raw, cleaned, tokenized, subwords, binarized.
BYTES_A_PAIR = 2_000
# A backward pass takes twice the operations of the forward pass; a multiply-accumulate counts two.
FLOPS_A_MAC = 6
# Values that a checkpoint holds of a parameter: the weight and two moments of Adam, 4 bytes each.
CHECKPOINT_BYTES = 12


@dataclass(frozen=True)
class RowEstimate:
    """What one run of a row costs.

    Args:
        run: the row's name.
        parameters: unique ones.
        tokens: target tokens to train on.
        flops: operations of the training.
        disk: bytes of its checkpoints.
    """

    run: str
    parameters: int
    tokens: int
    flops: float
    disk: int

    def device_hours(self, tflops: float = TFLOPS) -> float:
        """Return hours on one device that sustains so many TFLOP/s; on more devices they are shared."""
        return self.flops / (tflops * 1e12) / 3600


def estimate_rows(table: Table) -> list[RowEstimate]:
    """Estimate each row of a table, whatever its seeds.

    Raises:
        SharingError: the study does not say how many pairs its data have.
    """
    for key in ("pairs", "vocabulary"):
        if key not in table.study.estimate:
            raise SharingError(f"{table.study.file}: estimate.{key}: missing; an estimate needs it")
    return [_estimate(row, table) for row in table.chosen_rows() if row not in table.study.map_of]


def data_bytes(study: Study) -> int:
    """Estimate the disk that the prepared data takes."""
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
    kept = (train.get("keep_last_epochs") or 1) + (train.get("keep_interval_updates") or 0) + 2  # and last and best
    return RowEstimate(
        run=str(config.run),
        parameters=parameters,
        tokens=tokens,
        flops=FLOPS_A_MAC * model.macs / TOKENS_A_PAIR * tokens,
        disk=CHECKPOINT_BYTES * parameters * kept,
    )
