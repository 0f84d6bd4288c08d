"""What a training log tells about a run: how fast it trained and how its validation loss fell."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

# The first entries of a log hold start-up costs: allocation, kernel selection, filling of caches.
WARM_UP_ENTRIES = 5


@dataclass(frozen=True)
class TrainingLog:
    """A run's speed and learning curve.

    Attributes:
        tokens_per_second: target tokens a second, padding not counted; None when the log is too short.
        valid: parallel lists "epoch", "updates", "loss" (the criterion's, base 2) and "perplexity".
        experts: of each router in the last validation ("decoder_ffn_3": stack, kind, layer from 1) its "choices" (how
            often each expert was chosen), "evenness" and "dead" (fractions); empty for models without experts.
    """

    tokens_per_second: float | None
    valid: dict[str, list[float | None]]
    experts: dict[str, dict[str, Any]] = field(default_factory=dict)


def summarize(records: Iterable[tuple[str, Mapping[str, Any]]]) -> TrainingLog:
    """Summarize the JSON lines of fairseq's training log.

    Args:
        records: kind and content of each line, as `RunDirectory.log_records` yields them. What a resumed run
            logs again for the same update replaces what it logged before.

    Returns:
        The median over the log's "wps" entries after the first few (those of whole epochs, "train_wps", where
        the log has no finer ones) and the curve over the validations.
    """
    inner: dict[int, float] = {}
    epochs: dict[int, float] = {}
    valid: dict[int, tuple[int | None, float | None, float | None]] = {}
    experts: dict[str, dict[str, Any]] = {}
    for _, record in records:
        if "wps" in record and "num_updates" in record:
            inner[int(record["num_updates"])] = float(record["wps"])
        elif "train_wps" in record:
            epochs[int(record["train_num_updates"])] = float(record["train_wps"])
        elif "valid_loss" in record:
            valid[int(record["valid_num_updates"])] = (
                record.get("epoch"),
                _finite(record["valid_loss"]),
                _finite(record.get("valid_ppl")),
            )
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
    """Read how a validation's routers chose."""
    experts: dict[str, dict[str, Any]] = {}
    for key, value in record.items():
        if match := re.fullmatch(r"valid_(.+)_(choices|evenness|dead)", key):
            experts.setdefault(match[1], {})[match[2]] = value if match[2] == "choices" else float(value)
    return experts


def _finite(value: Any) -> float | None:
    """Read a number of the log; one that JSON cannot hold (a diverged loss) is None."""
    number = float("nan") if value is None else float(value)
    return number if math.isfinite(number) else None
