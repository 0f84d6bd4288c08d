"""Translate chunks of the training side of prepared data with a teacher."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fairseq_sharing.decoding.search import Hypothesis, Search
from fairseq_sharing.distillation.settings import DistillationSettings
from fairseq_sharing.distillation.teacher import Teacher
from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.bleu_tokenizer import make_bleu
from fairseq_sharing.preparation.stream import Chunk
from fairseq_sharing.preparation.text import Pipeline
from fairseq_sharing.preparation.transform import Transformed

CHUNK = 500
"""Number of sentences that are translated at a time; a stopped run repeats those that are in progress."""

FINISHED, UNFINISHED, UNTRANSLATED = "finished", "unfinished", "untranslated"
"""States of a translation: complete; cut off at the maximum length; no translation, because the source is empty or
longer than the teacher reads."""


@dataclass(frozen=True)
class References:
    """Scores translations by their sentence BLEU against references.

    Attributes:
        data: prepared data directory, whose rules detokenize both.
        language: target language.
        lowercase: whether to ignore case.
    """

    data: Path
    language: str
    lowercase: bool

    def bleu(self, translation: str, reference: str) -> float:
        """Return the BLEU of a translation, both in subwords."""
        pipeline, metric = _scorer(self)
        return float(metric.sentence_score(pipeline.decode(translation), [pipeline.decode(reference)]).score)


@lru_cache(maxsize=1)
def _scorer(references: References) -> tuple[Pipeline, Any]:
    metric = make_bleu(references.language, lowercase=references.lowercase, effective_order=True)
    return Pipeline.from_manifest(references.data), metric


def translate_chunk(
    teacher: Teacher, settings: DistillationSettings, references: References, chunk: Chunk
) -> Transformed:
    """Translate training sentences; the result depends on nothing else.

    Args:
        teacher: see ``Teacher.exported``.
        settings: the search and the choice of the translation.
        references: scores translations for ``interpolate``.
        chunk: sources and references in subwords.

    Returns:
        One line per sentence: state, score and subwords, separated by tabs; and the number of sentences.

    Raises:
        SharingError: a score is NaN or infinite.
    """
    sources, targets = (text.decode().split("\n")[:-1] for text in chunk)
    engine = teacher.load(_seed(settings.seed, chunk[0]) if settings.targets == "sample" else None)
    search = settings.search()
    sentences = [line.split() for line in sources]
    asked = [index for index, words in enumerate(sentences) if 0 < len(words) <= engine.max_source]
    lines = [f"{UNTRANSLATED}\t0\t"] * len(sentences)
    for position, found in engine.translate([sentences[index] for index in asked], search) if asked else ():
        index = asked[position]
        if not found or not all(math.isfinite(hypothesis.score) for hypothesis in found):
            raise SharingError(
                f"training sentence {sources[index]!r}: the teacher's scores are NaN or infinite; "
                "allowed: a model whose log-probabilities are finite"
            )
        chosen = choose(found, targets[index], references)
        lines[index] = f"{_state(chosen, search, engine.max_target)}\t{chosen.score:.6g}\t{chosen.text}"
    return ("".join(f"{line}\n" for line in lines).encode(),), Counter(sentences=len(lines))


def choose(found: Sequence[Hypothesis], reference: str, references: References) -> Hypothesis:
    """Choose the translation with the highest sentence BLEU; the one with the higher score if several are equal.

    Args:
        found: translations of a sentence, best first; a single one is returned.
        reference: its reference, in subwords.
        references: computes BLEU.

    Source: Kim and Rush 2016, sequence-level interpolation.
    """
    if len(found) == 1:
        return found[0]
    return max(found, key=lambda hypothesis: (references.bleu(hypothesis.text, reference), hypothesis.score))


def _state(hypothesis: Hypothesis, search: Search, max_target: int) -> str:
    return UNFINISHED if hypothesis.num_tokens >= min(search.max_len_b, max_target) else FINISHED


def _seed(seed: int, sources: bytes) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} ".encode() + sources).digest()[:4], "big")
