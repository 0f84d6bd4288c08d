"""Read a run's speed and learning curve from its training log."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fairseq_sharing.finite import as_number

# The first entries of a log include start-up costs: allocation, kernel selection, cache warm-up.
WARM_UP_ENTRIES = 5


@dataclass(frozen=True)
class TrainingLog:
    """A run's speed and learning curve.

    Attributes:
        tokens_per_second: target tokens per second, excluding padding; None if the log is too short.
        valid: parallel lists "epoch", "updates", "loss" (the criterion's, base 2) and "perplexity".
        experts: for each router in the last validation ("decoder_ffn_3": stack, kind, layer from 1): "choices" (how
            often each expert was chosen), "evenness" and "dead" (fractions). Empty for models without experts.
    """

    tokens_per_second: float | None
    valid: dict[str, list[float | None]]
    experts: dict[str, dict[str, Any]] = field(default_factory=dict)


def summarize(records: Iterable[tuple[str, Mapping[str, Any]]]) -> TrainingLog:
    """Summarize the JSON lines of fairseq's training log.

    Args:
        records: kind and content of each line, as `RunDirectory.log_records` yields them. If a resumed run logs an
            update again, the later entry is used.

    Returns:
        The median of the "wps" entries without the first few (or of the per-epoch "train_wps" entries if there are no
        "wps" entries), and the learning curve over the validations.
    """
    inner: dict[int, float] = {}
    epochs: dict[int, float] = {}
    valid: dict[int, tuple[int | None, float | None, float | None]] = {}
    experts: dict[str, dict[str, Any]] = {}
    for _, record in records:
        updates, speed = as_number(record.get("num_updates")), as_number(record.get("wps"))
        if updates is not None and speed is not None:
            inner[int(updates)] = speed
            continue
        updates, speed = as_number(record.get("train_num_updates")), as_number(record.get("train_wps"))
        if updates is not None and speed is not None:
            epochs[int(updates)] = speed
            continue
        updates, epoch = as_number(record.get("valid_num_updates")), as_number(record.get("epoch"))
        if "valid_loss" in record and updates is not None:
            losses = as_number(record["valid_loss"]), as_number(record.get("valid_ppl"))
            valid[int(updates)] = (None if epoch is None else int(epoch), *losses)
            experts = _experts(record)
    speeds = [inner[updates] for updates in sorted(inner)][WARM_UP_ENTRIES:]
    speeds = speeds or [epochs[updates] for updates in sorted(epochs)][1:]
    updates_seen = sorted(valid)
    return TrainingLog(
        tokens_per_second=round(statistics.median(speeds), 1) if speeds else None,
        valid={
            "epoch": [valid[updates][0] for updates in updates_seen],
            "updates": list(updates_seen),
            "loss": [valid[updates][1] for updates in updates_seen],
            "perplexity": [valid[updates][2] for updates in updates_seen],
        },
        experts=experts,
    )


def _experts(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Read the router statistics of a validation."""
    experts: dict[str, dict[str, Any]] = {}
    for key, value in record.items():
        if match := re.fullmatch(r"valid_(.+)_(choices|evenness|dead)", key):
            read = _choices(value) if match[2] == "choices" else as_number(value)
            if read is not None:
                experts.setdefault(match[1], {})[match[2]] = read
    return experts


def _choices(value: Any) -> list[Any] | None:
    """Read how often each expert was chosen; None if the value is no list of numbers."""
    return value if isinstance(value, list) and all(as_number(item) is not None for item in value) else None
