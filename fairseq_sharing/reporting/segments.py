"""The part of a difference's error that comes from the choice of test sentences, and paired tests of two files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_sharing.errors import SharingError
from fairseq_sharing.reporting.kept_hypotheses import read_kept
from fairseq_sharing.reporting.results import Row
from fairseq_sharing.reporting.signatures import ignores_case, settings_of, tokenizer_of
from fairseq_sharing.reporting.statistics import Pair

RESAMPLES = 1000
_SEED = 12345
_ROUNDING = 1e-3  # results record four decimals


@dataclass(frozen=True)
class RawTexts:
    """The raw text of test sets.

    Attributes:
        sources: the source segments by test set.
        references: the reference segments by test set.
    """

    sources: Mapping[str, Sequence[str]]
    references: Mapping[str, Sequence[str]]


class SegmentStatistics:
    """The sufficient statistics of a metric for each segment of a test set, by run.

    A corpus score is computed from their sum, so that segments can be resampled without scoring them again.

    Args:
        metric: a sacreBLEU metric.
        references: one reference per segment.
    """

    def __init__(self, metric: Any, references: Sequence[str]) -> None:
        self._metric, self._references = metric, list(references)

    def of(self, hypotheses: Sequence[str]) -> np.ndarray:
        """Return the statistics, one line per segment."""
        return np.array(self._metric._extract_corpus_statistics(list(hypotheses), [self._references]))

    def score(self, total: np.ndarray) -> float:
        """Return the corpus score of summed statistics."""
        return float(self._metric._compute_score_from_stats(total.tolist()).score)


def segment_errors(
    rows: Sequence[Row],
    folder: Path,
    references: Mapping[str, Sequence[str]],
    tests: Sequence[str],
    metric: str,
    pairs: Sequence[Pair],
) -> dict[Pair, float]:
    """Estimate the standard error of differences between rows that comes from the choice of test sentences.

    The segments of each test set are resampled with replacement, with the same segments for all runs. Each resample
    gives one score per run, and thus one difference of row means.

    Args:
        rows: the experiments.
        folder: the folder of their result files; the paths of hypotheses are relative to it.
        references: raw references by test set.
        tests: the test sets of the primary score, which is their mean.
        metric: bleu, chrf, chrf++ or ter.
        pairs: names of the rows to compare.

    Returns:
        The standard error of each pair; empty if a result names no hypotheses.

    Raises:
        SharingError: a missing reference or file, or hypotheses that do not give the recorded score.
    """
    needed = {name for pair in pairs for name in pair}
    chosen = [row for row in rows if row.run in needed]
    scores = [result["scores"][test] for row in chosen for result in row.results for test in tests]
    if not pairs or any("hypotheses" not in score for score in scores):
        return {}
    means = {row.run: np.zeros(RESAMPLES) for row in chosen}
    generator = np.random.default_rng(_SEED)
    for test in tests:
        if test not in references:
            raise SharingError(f"--data: no test set {test}; allowed: the data that the runs were evaluated on")
        segments = len(references[test])
        # How often each resample contains each segment.
        counts = generator.multinomial(segments, np.full(segments, 1 / segments), size=RESAMPLES)
        for row in chosen:
            for result in row.results:
                means[row.run] += _resampled(result, test, folder, references[test], metric, counts) / (
                    len(row.results) * len(tests)
                )
    return {pair: float(np.std(means[pair[0]] - means[pair[1]], ddof=1)) for pair in pairs}


def _resampled(
    result: Mapping[str, Any], test: str, folder: Path, references: Sequence[str], metric: str, counts: np.ndarray
) -> np.ndarray:
    """Return the score of a run on each resample of the segments."""
    score = result["scores"][test]
    file = folder / score["hypotheses"]
    hypotheses = read_kept(score, folder)
    if len(hypotheses) != len(references):
        raise SharingError(f"{file} has {len(hypotheses)} lines, its references have {len(references)}")
    statistics = SegmentStatistics(make_metric(metric, score["signature"][metric]), references)
    by_segment = statistics.of(hypotheses)
    found = statistics.score(by_segment.sum(axis=0))
    if abs(found - score[metric]) > _ROUNDING:
        raise SharingError(
            f"{file}: {metric} is {found:.4f} with the references of --data, but the result records "
            f"{score[metric]:.4f}; allowed: the data that the run was evaluated on"
        )
    return np.array([statistics.score(total) for total in counts @ by_segment])


def make_metric(metric: str, signature: str) -> Any:
    """Make the sacreBLEU metric of a result from its signature.

    Raises:
        SharingError: a metric that has no statistics per segment.
    """
    from sacrebleu.metrics import BLEU, CHRF, TER

    settings, lowercase = settings_of(signature), ignores_case(signature)
    if metric == "bleu":
        tokenize = tokenizer_of(signature)
        if tokenize not in BLEU.TOKENIZERS:
            raise SharingError(f"--data: unknown tokenizer in the signature {signature}")
        return BLEU(tokenize=tokenize, smooth_method=settings["smooth"], lowercase=lowercase)
    if metric in ("chrf", "chrf++"):
        return CHRF(word_order=int(settings["nw"]), lowercase=lowercase)
    if metric == "ter":
        asian, normalized = (settings[name] == "yes" for name in ("asian", "norm"))
        return TER(case_sensitive=not lowercase, normalized=normalized, asian_support=asian)
    raise SharingError(f"--data: {metric}; allowed: bleu, chrf, chrf++ or ter")
