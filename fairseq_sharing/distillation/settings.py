"""Settings of sequence-level distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fairseq_sharing.decoding.search import Search
from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.settings import ENGINES
from fairseq_sharing.finite import is_number

TARGETS = ("best", "interpolate", "sample")
FILTERS = ("empty", "unfinished", "ratio", "copied", "repeated")
DEFAULT_FILTERS = ("empty", "unfinished", "ratio")
MAX_TOKENS = 2048  # source subwords per batch: a fixed number, because rounding depends on the batch


@dataclass(frozen=True)
class DistillationSettings:
    """What a teacher's translations are, and which of them become training pairs.

    Attributes:
        targets: ``best`` (of the beam search), ``interpolate`` (the one of the N best translations with the highest
            sentence BLEU against the reference) or ``sample`` (drawn from the teacher's distribution).
        engine: see ``evaluation.settings.ENGINES``.
        beam: beam size; None for 5, or for ``nbest`` if it is larger.
        nbest: translations to choose from for ``interpolate``; None for the beam size.
        lenpen: length penalty.
        max_len_b: maximum number of subwords of a translation.
        max_tokens: source subwords per batch.
        temperature: for ``sample``.
        seed: for ``sample``.
        filters: names of FILTERS.
        max_ratio: for ``ratio``: maximum ratio of the lengths of source and translation in subwords, and vice versa.
        min_bleu: minimum sentence BLEU against the reference; 0 keeps all.
        originals: how often each original pair is added.
    """

    targets: str = "best"
    engine: str = "ctranslate2"
    beam: int | None = None
    nbest: int | None = None
    lenpen: float = Search.lenpen
    max_len_b: int = Search.max_len_b
    max_tokens: int = MAX_TOKENS
    temperature: float = 1.0
    seed: int = 1
    filters: tuple[str, ...] = DEFAULT_FILTERS
    max_ratio: float = 3.0
    min_bleu: float = 0.0
    originals: int = 0

    def __post_init__(self) -> None:
        if self.targets not in TARGETS:
            raise SharingError(f"--targets must be one of {', '.join(TARGETS)}, got {self.targets!r}")
        if self.engine not in ENGINES:
            raise SharingError(f"--engine must be one of {', '.join(ENGINES)}, got {self.engine!r}")
        for name in self.filters:
            if name not in FILTERS:
                raise SharingError(f"--filter: {name!r}; allowed: none, or a list of {', '.join(FILTERS)}")
        if self.nbest is not None and self.targets != "interpolate":
            raise SharingError(f"--nbest {self.nbest}: requires --targets interpolate, got {self.targets}")
        if not is_number(self.max_ratio) or self.max_ratio < 1:
            raise SharingError(f"--max-ratio must be a finite number >= 1, got {self.max_ratio!r}")
        if not is_number(self.min_bleu) or not 0 <= self.min_bleu <= 100:
            raise SharingError(f"--min-bleu must be between 0 and 100, got {self.min_bleu!r}")
        self.search()

    def search(self) -> Search:
        """Return the settings of the search.

        Raises:
            SharingError: an invalid setting.
        """
        lengths = {"max_len_b": self.max_len_b, "max_tokens": self.max_tokens}
        if self.targets == "sample":
            if self.beam is not None:
                raise SharingError(f"--beam {self.beam}: --targets sample has no beam; allowed: best or interpolate")
            return Search(beam=1, temperature=self.temperature, **lengths)
        beam = self.beam if self.beam is not None else max(Search.beam, self.nbest or 1)
        nbest = (beam if self.nbest is None else self.nbest) if self.targets == "interpolate" else 1
        return Search(beam=beam, nbest=nbest, lenpen=self.lenpen, **lengths)

    def translation(self) -> dict[str, Any]:
        """Return what determines the translations, for the record."""
        search, sampled = self.search(), self.targets == "sample"
        used = ("temperature",) if sampled else ("beam", "nbest", "lenpen")
        return {
            "targets": self.targets,
            "engine": self.engine,
            **{name: getattr(search, name) for name in (*used, "max_len_b", "max_tokens")},
            **({"seed": self.seed} if sampled else {}),
        }

    def selection(self) -> dict[str, Any]:
        """Return what determines which pairs are kept, for the record."""
        ratio = {"max_ratio": self.max_ratio} if "ratio" in self.filters else {}
        names = [name for name in FILTERS if name in self.filters]
        return {"filters": names, **ratio, "min_bleu": self.min_bleu, "originals": self.originals}
