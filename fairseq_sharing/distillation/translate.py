"""Translate the training side of prepared data with a teacher, shard by shard, in worker processes."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from fairseq_sharing.decoding.search import Hypothesis, Search
from fairseq_sharing.distillation.settings import DistillationSettings
from fairseq_sharing.distillation.shards import Shards
from fairseq_sharing.distillation.teacher import Teacher
from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.bleu_tokenizer import make_bleu
from fairseq_sharing.files import read_lines
from fairseq_sharing.preparation.parallel import Workers
from fairseq_sharing.preparation.progress import progress
from fairseq_sharing.preparation.text import Pipeline

SHARD = 500
"""Number of sentences per shard."""

FINISHED, UNFINISHED, UNTRANSLATED = "finished", "unfinished", "untranslated"
"""States of a translation: complete; cut off at the maximum length; no translation, because the source is empty or
longer than the teacher reads."""


class Shard(NamedTuple):
    """Consecutive training pairs, in subwords."""

    number: int
    sources: list[str]
    references: list[str]


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


def translate_text(
    teacher: Teacher,
    settings: DistillationSettings,
    texts: tuple[Path, Path],
    lines: int,
    references: References,
    shards: Shards,
    pool: Workers,
) -> None:
    """Add the missing shards of the translations of a text.

    Args:
        teacher: see ``Teacher.exported``.
        settings: the search and the choice of the translation.
        texts: source and reference, in subwords.
        lines: number of lines of each.
        references: scores translations for ``interpolate``.
        shards: receives one line per sentence: state, score and subwords, separated by tabs.
        pool: the worker processes.

    Raises:
        SharingError: a score is NaN or infinite.
    """
    done = sum(min(SHARD, lines - start) for start in range(0, lines, SHARD) if start // SHARD in shards)
    function = partial(translate_shard, teacher, settings, references)
    missing = (shard for shard in _read(texts) if shard.number not in shards)
    with progress("translate train", lines, "sentences", done) as advance:
        for number, size, content in pool.map(function, missing):
            shards.add(number, content)
            advance(size)


def _read(texts: tuple[Path, Path]) -> Iterator[Shard]:
    pairs = zip(*map(read_lines, texts), strict=True)
    for number in itertools.count():
        if not (chunk := list(itertools.islice(pairs, SHARD))):
            return
        yield Shard(number, [source for source, _ in chunk], [reference for _, reference in chunk])


def translate_shard(
    teacher: Teacher, settings: DistillationSettings, references: References, shard: Shard
) -> tuple[int, int, bytes]:
    """Translate a shard; its result depends on nothing else.

    Args:
        teacher: the teacher.
        settings: the search and the choice of the translation.
        references: scores translations for ``interpolate``.
        shard: the pairs.

    Returns:
        The number of the shard, its size, and its lines.

    Raises:
        SharingError: a score is NaN or infinite.
    """
    engine = teacher.load(_seed(settings.seed, shard.number) if settings.targets == "sample" else None)
    search = settings.search()
    sentences = [line.split() for line in shard.sources]
    asked = [index for index, words in enumerate(sentences) if 0 < len(words) <= engine.max_source]
    lines = [f"{UNTRANSLATED}\t0\t"] * len(sentences)
    for position, found in engine.translate([sentences[index] for index in asked], search) if asked else ():
        index = asked[position]
        if not found or not all(math.isfinite(hypothesis.score) for hypothesis in found):
            raise SharingError(
                f"training sentence {shard.number * SHARD + index + 1}: the teacher's scores are NaN or infinite; "
                "allowed: a model whose log-probabilities are finite"
            )
        chosen = choose(found, shard.references[index], references)
        lines[index] = f"{_state(chosen, search, engine.max_target)}\t{chosen.score:.6g}\t{chosen.text}"
    return shard.number, len(lines), "".join(f"{line}\n" for line in lines).encode()


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


def _seed(seed: int, shard: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {shard}".encode()).digest()[:4], "big")
