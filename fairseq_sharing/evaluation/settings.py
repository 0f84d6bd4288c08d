"""Settings of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from fairseq_sharing.documents import is_count
from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.bleu_tokenizer import choose_tokenizer
from fairseq_sharing.finite import HUGE, MAX_BEAM, is_number

CTRANSLATE2 = "ctranslate2"
ENGINES = ("fairseq", CTRANSLATE2)


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of an evaluation: the ``evaluate`` block of a run's configuration.

    Attributes:
        average_last: number of newest epoch checkpoints to average.
        engine: ``fairseq``, or ``ctranslate2`` for translation models that can be exported to it, on CPUs.
        beam: beam size.
        lenpen: length penalty; above 1 favors longer translations.
        max_tokens: source tokens per batch, including padding.
        test_lenpen: length penalty per test set, overriding lenpen; null removes an override of the base configuration.
        max_len_a: with max_len_b, limits the length of a translation to max_len_a x source tokens + max_len_b.
        max_len_b: see max_len_a; the defaults are fairseq's.
        compound_split: also compute tokenized BLEU with German compounds split, as in early papers.
        tokenize: sacreBLEU's tokenizer for BLEU; None chooses it by target language.
        tokens_per_sample: tokens per block of text for language models; None for the number of the training.
        context_window: for language models, number of tokens of a block that are only context; the same tokens are
            scored in the previous block.
    """

    average_last: int = 10
    engine: str = ENGINES[0]
    beam: int = 5
    lenpen: float = 1.0
    max_tokens: int = 8000
    test_lenpen: Mapping[str, float] = field(default_factory=dict)
    max_len_a: float = 0.0
    max_len_b: int = 200
    compound_split: bool = False
    tokenize: str | None = None
    tokens_per_sample: int | None = None
    context_window: int = 0

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
        if not isinstance(lenpens, Mapping):
            raise SharingError(f"evaluate.test_lenpen: {lenpens}; allowed: a mapping from test set to length penalty")
        return cls(**{**block, "test_lenpen": {test: value for test, value in lenpens.items() if value is not None}})

    @classmethod
    def of_run(cls, config: Mapping[Any, Any], overrides: Mapping[str, Any] | None = None) -> EvaluationSettings:
        """Read the ``evaluate`` block of a run directory's configuration.

        Args:
            config: the configuration. Earlier versions recorded a baseline, which is ignored.
            overrides: values that replace those of the block.

        Raises:
            SharingError: an unknown key or an invalid value.
        """
        block = {key: value for key, value in (config.get("evaluate") or {}).items() if key != "baseline"}
        return cls.of({**block, **(overrides or {})})

    def __post_init__(self) -> None:
        minimum = {"average_last": 1, "beam": 1, "max_tokens": 1, "max_len_b": 1, "context_window": 0}
        if self.tokens_per_sample is not None:
            minimum["tokens_per_sample"] = 1
        for name, least in minimum.items():
            value = getattr(self, name)
            if not is_count(value) or value < least:
                raise SharingError(f"evaluate.{name} must be an integer >= {least}, got {value!r}")
            if value > (most := MAX_BEAM if name == "beam" else HUGE):
                raise SharingError(f"evaluate.{name} must be at most {most:,}, got {value!r}")
        if self.engine not in ENGINES:
            raise SharingError(f"evaluate.engine: {self.engine!r}; allowed: {', '.join(ENGINES)}")
        if self.engine == CTRANSLATE2 and self.max_len_a:
            raise SharingError(f"evaluate.max_len_a: {self.max_len_a}; allowed with the engine {ENGINES[0]} only")
        for name, value in {"lenpen": self.lenpen, **self.test_lenpen}.items():
            if not is_number(value):
                raise SharingError(f"evaluate: length penalty {name} must be a finite number, got {value!r}")
        if not is_number(self.max_len_a) or self.max_len_a < 0:
            raise SharingError(f"evaluate.max_len_a must be a finite number >= 0, got {self.max_len_a!r}")
        if not isinstance(self.compound_split, bool):
            raise SharingError(f"evaluate.compound_split must be true or false, got {self.compound_split!r}")
        if self.tokenize is not None:
            choose_tokenizer("", self.tokenize)
