"""Score detokenized translations against raw references with sacreBLEU: BLEU, chrF2, chrF++ and TER."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.bleu_tokenizer import choose_tokenizer, make_bleu
from fairseq_sharing.reporting import metrics

BOOTSTRAP_SAMPLES = 1000  # sacreBLEU's default
METRICS = {name: metrics.METRICS[name].label for name in ("bleu", "chrf", "chrf++", "ter")}
"""Names in results and in tables."""

_BUCKETS = (10, 20, 30, 40, 50, 60)  # maximum reference length of each bucket but the last
_BUCKET_SEGMENTS = 50  # smaller buckets are merged
# Without spaces between words, TER edits characters.
_BY_CHARACTER = ("zh", "ja-mecab")

Statistics = Mapping[str, np.ndarray]
"""sacreBLEU's sufficient statistics: for each metric, an array with one row per segment. Sums of rows give scores."""


class Scorer:
    """Scores systems that translated the same text.

    Args:
        references: one or more reference translations of the text, each with one line per segment.
        target_lang: language code that determines BLEU's tokenizer: 13a except for Chinese, Japanese and Korean.
        tokenize: one of sacreBLEU's tokenizers, which overrides the choice.
        lowercase: whether to ignore case, for models of lower-cased data.

    Raises:
        SharingError: there is nothing to score, the references differ in length, or the tokenizer is not available.

    Source:
        Post 2018, "A Call for Clarity in Reporting BLEU Scores"; chrF++: Popović 2017; TER: Snover et al. 2006.
    """

    def __init__(
        self,
        references: Sequence[Sequence[str]],
        target_lang: str = "",
        tokenize: str | None = None,
        lowercase: bool = False,
    ):
        from sacrebleu.metrics import CHRF, TER

        self.segments = len(references[0])
        if not self.segments:
            raise SharingError("nothing to score: the reference is empty")
        for reference in references[1:]:
            if len(reference) != self.segments:
                raise SharingError(f"references of {self.segments} and {len(reference)} segments cannot be combined")
        self._references = references
        asian = choose_tokenizer(target_lang, tokenize) in _BY_CHARACTER
        self.metrics: dict[str, Any] = {
            "bleu": make_bleu(target_lang, tokenize, lowercase),
            "chrf": CHRF(lowercase=lowercase),
            "chrf++": CHRF(word_order=2, lowercase=lowercase),
            "ter": TER(case_sensitive=not lowercase, normalized=asian, asian_support=asian),
        }

    def statistics(self, hypotheses: Sequence[str]) -> Statistics:
        """Count what the scores are computed from.

        Args:
            hypotheses: one translation per segment, in the order of the references.

        Raises:
            SharingError: the number of translations differs from that of the references.
        """
        if len(hypotheses) != self.segments:
            raise SharingError(f"{len(hypotheses)} hypotheses cannot be scored against {self.segments} references")
        return {
            name: np.array(metric._extract_corpus_statistics(hypotheses, self._references))
            for name, metric in self.metrics.items()
        }

    def value(self, metric: str, statistics: np.ndarray) -> float:
        """Compute the corpus score of a metric from the statistics of segments."""
        return float(self.metrics[metric]._aggregate_and_compute(statistics).score)

    def scores(self, hypotheses: Sequence[str], statistics: Statistics | None = None) -> dict[str, Any]:
        """Score the translations of a system.

        Args:
            hypotheses: one translation per segment.
            statistics: their statistics, if known.

        Returns:
            The fields of a test set in a result file: segments; the score of each metric (percent, 4 decimals);
            bleu_interval (95%, bootstrap with a fixed seed); signature of each metric; length_ratio (tokens of all
            translations per reference token); empty (translations without text); over_long (translations with more
            than twice the tokens of their reference, and at least 10 more); by_length (BLEU by reference length).
        """
        from sacrebleu.significance import _bootstrap_resample

        counts = statistics or self.statistics(hypotheses)
        bleu = self.metrics["bleu"]
        total = bleu._aggregate_and_compute(counts["bleu"])
        bleu.n_bootstrap = BOOTSTRAP_SAMPLES
        bleu.seed, resampled = _bootstrap_resample(counts["bleu"].tolist(), bleu, BOOTSTRAP_SAMPLES)
        total.estimate_ci(resampled)
        interval = (max(0.0, total._mean - total._ci), total._mean + total._ci)
        own, reference = _lengths(counts)
        return {
            "segments": self.segments,
            "bleu": round(float(total.score), 4),
            "bleu_interval": [round(float(end), 4) for end in interval],
            **{name: round(self.value(name, counts[name]), 4) for name in self.metrics if name != "bleu"},
            "signature": {name: str(metric.get_signature()) for name, metric in self.metrics.items()},
            "length_ratio": round(float(own.sum() / max(1, reference.sum())), 4),
            "empty": sum(not line.strip() for line in hypotheses),
            "over_long": int(((own > 2 * reference) & (own >= reference + 10)).sum()),
            "by_length": [
                {
                    "up_to": up_to,
                    "segments": int(chosen.sum()),
                    "bleu": round(self.value("bleu", counts["bleu"][chosen]), 4),
                }
                for up_to, chosen in _buckets(reference)
            ],
        }


def score(
    hypotheses: Sequence[str],
    references: Sequence[str],
    target_lang: str = "",
    tokenize: str | None = None,
    lowercase: bool = False,
) -> dict[str, Any]:
    """Score translations against one reference; see `Scorer` and `Scorer.scores`."""
    return Scorer([references], target_lang, tokenize, lowercase).scores(hypotheses)


def _lengths(statistics: Statistics) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of each translation and of its closest reference, by BLEU's tokenizer."""
    return statistics["bleu"][:, 0], statistics["bleu"][:, 1]


def _buckets(lengths: np.ndarray) -> list[tuple[int | None, np.ndarray]]:
    """Group segments by reference length, at least 50 per bucket if there are as many.

    Returns:
        The maximum length of each bucket, None for the last, and the mask of its segments.
    """
    bounds: list[int] = []
    done = 0
    for bound in _BUCKETS:
        there = int((lengths <= bound).sum())
        if there - done >= _BUCKET_SEGMENTS and len(lengths) - there >= _BUCKET_SEGMENTS:
            bounds.append(bound)
            done = there
    edges = zip([-1, *bounds], [*bounds, None], strict=True)
    return [(up, (lengths > low) & (lengths <= (np.inf if up is None else up))) for low, up in edges]
