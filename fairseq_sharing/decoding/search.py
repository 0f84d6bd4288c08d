"""Settings and results of the beam search, common to all engines."""

from __future__ import annotations

from dataclasses import dataclass

from fairseq_sharing.documents import is_count
from fairseq_sharing.errors import SharingError
from fairseq_sharing.finite import is_number
from fairseq_sharing.options import flag_of

MIN_TEMPERATURE = 0.01  # below, 1 / temperature leaves the range of scores
# CTranslate2's types of weights and arithmetic.
QUANTIZATIONS = ("int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16", "float16", "bfloat16", "float32")


@dataclass(frozen=True)
class Search:
    """Settings of the beam search, with fairseq-generate's names and defaults.

    Attributes:
        beam: hypotheses kept at each step.
        lenpen: length penalty; above 1 favors longer translations.
        nbest: number of translations returned per sentence, best first.
        max_len_b: maximum length of a translation, in subwords.
        max_tokens: source subwords per batch, including padding; None lets the engine choose.
        temperature: sample translations word by word from the model's distribution, raised to the power of
            1 / temperature; None for the beam search.
    """

    beam: int = 5
    lenpen: float = 1.0
    nbest: int = 1
    max_len_b: int = 200
    max_tokens: int | None = None
    temperature: float | None = None

    def __post_init__(self) -> None:
        for name in ("beam", "nbest", "max_len_b", "max_tokens"):
            value = getattr(self, name)
            if value is not None and (not is_count(value) or value < 1):
                raise SharingError(f"{flag_of(name)} must be an integer >= 1, got {value!r}")
        if self.nbest > self.beam:
            raise SharingError(f"--nbest must be between 1 and --beam ({self.beam}), got {self.nbest}")
        if not is_number(self.lenpen):
            raise SharingError(f"--lenpen must be a finite number, got {self.lenpen!r}")
        if self.temperature is not None and not (
            is_number(self.temperature) and MIN_TEMPERATURE <= self.temperature <= 1 / MIN_TEMPERATURE
        ):
            raise SharingError(
                f"--temperature must be a number from {MIN_TEMPERATURE} to {1 / MIN_TEMPERATURE:g}, "
                f"got {self.temperature!r}"
            )
        if self.temperature is not None and self.beam != 1:
            raise SharingError(f"--temperature {self.temperature}: requires --beam 1, got {self.beam}")


@dataclass(frozen=True)
class Hypothesis:
    """One translation.

    Attributes:
        text: the sentence; engines return its subwords, separated by spaces.
        score: log-probability (natural), divided by the length in subwords to the power of the length penalty.
        num_tokens: length in subwords, without the end of the sentence.
    """

    text: str
    score: float
    num_tokens: int
