"""How a run is evaluated."""

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
    """How a run is evaluated: the ``evaluate`` block of its configuration.

    Attributes:
        average_last: number of epoch checkpoints averaged, the newest.
        beam: beam size.
        lenpen: length penalty; above 1 favors longer translations.
        max_tokens: source tokens a batch, padding included.
        baseline: run name of the baseline, looked up beside the run at the same seed.
        test_lenpen: length penalty by test set, where it differs; null, which leaves out what a base names, is lenpen.
        max_len_a: with max_len_b, the longest translation: max_len_a x source words + max_len_b.
        max_len_b: see max_len_a; the defaults are fairseq's.
        compound_split: also score tokenized text with German compounds split, as early papers did; an extra.
        tokenize: sacreBLEU's tokenizer for BLEU; by the target language when None.
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
        """Read the block.

        Raises:
            SharingError: an unknown key, or a value that is not allowed.
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
                raise SharingError(f"evaluate.{name} must be a whole number from 1, got {value!r}")
        if self.baseline is not None:
            check_name(self.baseline, "evaluate.baseline")
        for name, value in {"lenpen": self.lenpen, **self.test_lenpen}.items():
            if not is_number(value):
                raise SharingError(f"evaluate: length penalty {name} must be a finite number, got {value!r}")
        if not is_number(self.max_len_a) or self.max_len_a < 0:
            raise SharingError(f"evaluate.max_len_a must be a finite number from 0, got {self.max_len_a!r}")
        if self.tokenize is not None:
            choose_tokenizer("", self.tokenize)
