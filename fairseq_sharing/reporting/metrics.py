"""The metrics of result files: their names, and which direction is better."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        label: its name in tables.
        lower_is_better: whether a lower value is better.
    """

    label: str
    lower_is_better: bool = False


METRICS = {
    "bleu": Metric("BLEU"),
    "chrf": Metric("chrF2"),
    "chrf++": Metric("chrF++"),
    "ter": Metric("TER", lower_is_better=True),
    "perplexity": Metric("perplexity", lower_is_better=True),
    "word_perplexity": Metric("perplexity per word", lower_is_better=True),
}
