"""Settings of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.bleu_tokenizer import choose_tokenizer
from fairseq_sharing.experiment.layers import check_name
from fairseq_sharing.finite import is_number


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of an evaluation: the ``evaluate`` block of a run's configuration.

    Attributes:
        average_last: number of newest epoch checkpoints to average.
        beam: beam size.
        lenpen: length penalty; above 1 favors longer translations.
        max_tokens: source tokens per batch, including padding.
        baseline: run name of the baseline, expected next to the run with the same seed.
        test_lenpen: length penalty per test set, overriding lenpen; null removes an override of the base configuration.
        max_len_a: with max_len_b, limits the length of a translation to max_len_a x source tokens + max_len_b.
        max_len_b: see max_len_a; the defaults are fairseq's.
        compound_split: also compute tokenized BLEU with German compounds split, as in early papers.
        tokenize: sacreBLEU's tokenizer for BLEU; None chooses it by target language.
    """

    average_last: int = 10
    beam: int = 5
    lenpen: float = 1.0
    max_tokens: int = 8000
    baseline: str | None = None
    test_lenpen: Mapping[str, float] = field(default_factory=dict)
    max_len_a: float = 0.0
    max_len_b: int = 200
    compound_split: bool = False
    tokenize: str | None = None

    @classmethod
    def of(cls, block: Mapping[Any, Any]) -> EvaluationSettings:
        """Read an ``evaluate`` block.

        Raises:
            SharingError: an unknown key or an invalid value.
        """
        known = [item.name for item in fields(cls)]
        for key in block:
            if key not in known:
                raise SharingError(f"evaluate: unknown key {key!r}; allowed: {', '.join(known)}")
        lenpens = block.get("test_lenpen") or {}
        return cls(**{**block, "test_lenpen": {test: value for test, value in lenpens.items() if value is not None}})

    def __post_init__(self) -> None:
        for name in ("average_last", "beam", "max_tokens", "max_len_b"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SharingError(f"evaluate.{name} must be an integer >= 1, got {value!r}")
        if self.baseline is not None:
            check_name(self.baseline, "evaluate.baseline")
        for name, value in {"lenpen": self.lenpen, **self.test_lenpen}.items():
            if not is_number(value):
                raise SharingError(f"evaluate: length penalty {name} must be a finite number, got {value!r}")
        if not is_number(self.max_len_a) or self.max_len_a < 0:
            raise SharingError(f"evaluate.max_len_a must be a finite number >= 0, got {self.max_len_a!r}")
        if self.tokenize is not None:
            choose_tokenizer("", self.tokenize)
