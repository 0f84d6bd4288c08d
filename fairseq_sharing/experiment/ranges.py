"""The values that make sense for options of ``fairseq-train``, which fairseq itself does not check.

With a value outside of these ranges a training fails late, runs without end, or trains nothing.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairseq_sharing.experiment.config import MAX_SEED, BadKeyError
from fairseq_sharing.finite import HUGE
from fairseq_sharing.layer_map import MAX_LAYERS


@dataclass(frozen=True)
class Range:
    """Allowed values of an option or of each element of a list.

    Attributes:
        least: the least value.
        most: the largest value.
        description: the allowed values, for errors.
        open_below: whether ``least`` itself is not allowed.
        open_above: whether ``most`` itself is not allowed.
    """

    least: float
    most: float
    description: str
    open_below: bool = False
    open_above: bool = False

    def contains(self, value: float) -> bool:
        """Return whether a value is allowed."""
        above = value > self.least if self.open_below else value >= self.least
        below = value < self.most if self.open_above else value <= self.most
        return above and below and math.isfinite(value)


_LAYERS = Range(1, MAX_LAYERS, f"from 1 to {MAX_LAYERS:,}")
_COUNT = Range(1, HUGE, f"from 1 to {HUGE:,}")
_LIMIT = Range(0, HUGE, f"from 0 (no limit) to {HUGE:,}")
_KEPT = Range(-1, HUGE, f"from -1 (all) to {HUGE:,}")
_FRACTION = Range(0, 1, "from 0 to below 1", open_above=True)
_SHARE = Range(0, 1, "from 0 to 1")
_FROM_ZERO = Range(0, HUGE, "from 0")
_ABOVE_ZERO = Range(0, HUGE, "above 0", open_below=True)
_STACKS = ("encoder", "decoder")

RANGES: Mapping[str, Range] = {
    **{
        f"{stack}_{size}": _COUNT
        for stack in _STACKS
        for size in ("embed_dim", "ffn_embed_dim", "attention_heads", "input_dim", "output_dim")
    },
    **{f"{stack}_layers": _LAYERS for stack in _STACKS},
    **dict.fromkeys(("max_source_positions", "max_target_positions", "tokens_per_sample"), _COUNT),
    **dict.fromkeys(
        ("dropout", "attention_dropout", "activation_dropout", "relu_dropout", "adaptive_softmax_dropout"), _FRACTION
    ),
    **{f"{stack}_layerdrop": _FRACTION for stack in _STACKS},
    **dict.fromkeys(("label_smoothing", "adam_betas", "adamax_betas", "lamb_betas", "momentum"), _FRACTION),
    "lr": _ABOVE_ZERO,
    "adam_eps": _ABOVE_ZERO,
    **dict.fromkeys(("clip_norm", "weight_decay", "end_learning_rate"), _FROM_ZERO),
    "lr_shrink": Range(0, 1, "above 0 and at most 1", open_below=True),
    "ema_decay": _SHARE,
    **dict.fromkeys(("warmup_updates", "total_num_update", "num_workers", "ema_start_update"), _LIMIT),
    **dict.fromkeys(("max_epoch", "max_update", "stop_time_hours", "validate_interval_updates"), _LIMIT),
    **dict.fromkeys(("save_interval_updates", "validate_after_updates"), _LIMIT),
    **dict.fromkeys(
        ("keep_last_epochs", "keep_best_checkpoints", "keep_interval_updates", "patience", "stop_min_lr"), _KEPT
    ),
    **dict.fromkeys(("max_tokens", "max_tokens_valid", "batch_size", "batch_size_valid", "update_freq"), _COUNT),
    **dict.fromkeys(("save_interval", "validate_interval", "log_interval", "required_batch_size_multiple"), _COUNT),
    "fp16_init_scale": _COUNT,
    "min_loss_scale": _ABOVE_ZERO,
    "seed": Range(0, MAX_SEED, f"from 0 to {MAX_SEED}"),
}


_PAIRS = ("adam_betas", "adamax_betas", "lamb_betas")


def check_ranges(values: Mapping[str, Any]) -> None:
    """Refuse option values that make no sense.

    Args:
        values: options of ``fairseq-train`` by name, including the defaults of the architecture.

    Raises:
        BadKeyError: a value is outside of its range, a pair has another length, or the attention heads do not divide a
            width.
    """
    for key, allowed in RANGES.items():
        for value in _numbers(values.get(key)):
            if not allowed.contains(value):
                raise BadKeyError(key, f"{values[key]}; allowed: numbers {allowed.description}")
    for key in _PAIRS:
        if values.get(key) is not None and len(numbers := list(_numbers(values[key]))) != 2:
            raise BadKeyError(key, f"{values[key]}; allowed: two numbers, got {len(numbers)}")
    updates = values.get("total_num_update")
    if values.get("lr_scheduler") == "polynomial_decay" and not all(number > 0 for number in _numbers(updates)):
        raise BadKeyError("total_num_update", f"{updates}; allowed: numbers from 1 with polynomial_decay")
    for stack in _STACKS if values.get("head_dim") is None else ():
        heads, width = values.get(f"{stack}_attention_heads"), values.get(f"{stack}_embed_dim")
        if isinstance(heads, int) and isinstance(width, int) and width % heads:
            raise BadKeyError(
                f"{stack}_attention_heads", f"{heads}; allowed: divisors of train.{stack}_embed_dim ({width})"
            )


def _numbers(value: Any) -> Iterator[float]:
    """Yield the numbers of a value: a number, a list, or text with a Python literal such as fairseq's Adam betas."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return
        if isinstance(value, str):
            return
    if isinstance(value, Sequence):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value
