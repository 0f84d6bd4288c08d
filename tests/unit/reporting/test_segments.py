"""The part of a difference's error that comes from the choice of test sentences."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from evaluation_results import result, write
from sacrebleu.metrics import BLEU, CHRF, TER

from fairseq_sharing.errors import SharingError
from fairseq_sharing.reporting import segments
from fairseq_sharing.reporting.report import write_report
from fairseq_sharing.reporting.results import read_rows
from fairseq_sharing.reporting.segments import SegmentStatistics, segment_errors

WORDS = ["ein", "Mann", "steht", "auf", "der", "Straße", "und", "eine", "Frau", "sieht", "den", "Hund", "im", "Garten"]
TEST = "test_2016_flickr"


def _texts(seed, count=60, noise=0.2):
    """References, and hypotheses in which some words are exchanged."""
    generator = np.random.default_rng(0)
    references = [generator.choice(WORDS, size=int(length)) for length in generator.integers(4, 15, count)]
    generator = np.random.default_rng(seed)
    hypotheses = [
        [str(generator.choice(WORDS)) if generator.random() < noise else str(word) for word in words]
        for words in references
    ]
    return [" ".join(words) for words in references], [" ".join(words) for words in hypotheses]


@pytest.mark.parametrize("metric", [BLEU(), CHRF(), CHRF(word_order=2), TER(case_sensitive=True)])
def test_summed_statistics_give_the_corpus_score(metric):
    references, hypotheses = _texts(1)
    statistics = SegmentStatistics(metric, references)
    expected = metric.corpus_score(hypotheses, [references]).score
    assert statistics.score(statistics.of(hypotheses).sum(axis=0)) == pytest.approx(expected, abs=1e-9)


def _study(folder, seeds=(1, 2)):
    references, _ = _texts(1)
    bleu = BLEU()
    results = []
    for run, noise in (("vanilla", 0.3), ("cycle", 0.2)):
        for seed in seeds:
            content = result(run, {"vanilla": "none"}.get(run, run), seed)
            _, hypotheses = _texts(seed + 10 * len(run), noise=noise)
            file = folder / "hypotheses" / f"{run}-seed{seed}.de.gz"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(gzip.compress("".join(line + "\n" for line in hypotheses).encode()))
            content["scores"][TEST] |= {
                "bleu": round(bleu.corpus_score(hypotheses, [references]).score, 4),
                "hypotheses": f"hypotheses/{file.name}",
                "segments": len(references),
            }
            results.append(content)
    write(folder, *results)
    return references


def test_error_over_segments_is_that_of_a_linear_metric(tmp_path, monkeypatch):
    """For the mean of a score per segment, the standard error is known: sd(d) / sqrt(S)."""

    class Mean:
        """The proportion of segments with an even number of words, as a metric."""

        def _extract_corpus_statistics(self, hypotheses, references):
            return [[float(len(set(line.split()))), 1.0] for line in hypotheses]

        def _compute_score_from_stats(self, stats):
            return type("Score", (), {"score": stats[0] / stats[1]})

    references = _study(tmp_path, seeds=(1,))
    monkeypatch.setattr(segments, "make_metric", lambda metric, signature: Mean())
    monkeypatch.setattr(segments, "_ROUNDING", 1000)
    monkeypatch.setattr(segments, "RESAMPLES", 2000)
    pair = ("cycle", "vanilla")
    errors = segment_errors(read_rows(tmp_path), tmp_path, {TEST: references}, [TEST], "bleu", [pair])
    values = [
        np.array([len(set(line.split())) for line in _texts(1 + 10 * len(run), noise=noise)[1]])
        for run, noise in (("cycle", 0.2), ("vanilla", 0.3))
    ]
    expected = np.std(values[0] - values[1], ddof=1) / len(references) ** 0.5
    assert errors[pair] == pytest.approx(expected, rel=0.03)


def test_report_covers_the_sentences_where_hypotheses_and_references_are_at_hand(tmp_path, monkeypatch):
    references = _study(tmp_path)
    monkeypatch.setattr(segments, "RESAMPLES", 200)
    monkeypatch.setattr("fairseq_sharing.reporting.figures.draw", lambda rows, folder: [])
    report = write_report(tmp_path, references={TEST: references})
    (error,) = report.conclusions.segments.values()
    assert error > 0
    again = write_report(tmp_path, references={TEST: references})
    assert again.conclusions.segments == report.conclusions.segments, "the generator is fixed"
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    low, high = report.conclusions.family.comparisons[0].widened(error)
    assert f"[{low:+.2f}, {high:+.2f}]" in text
    assert "With sentences" not in (write_report(tmp_path), (tmp_path / "table.md").read_text(encoding="utf-8"))[1]


def test_results_without_hypotheses_have_no_part_of_the_sentences(tmp_path):
    folder = write(tmp_path, result("vanilla"), result("cycle", "cycle"))
    assert segment_errors(read_rows(folder), folder, {}, [TEST], "bleu", [("cycle", "vanilla")]) == {}


def test_other_references_are_refused(tmp_path):
    references = _study(tmp_path)
    arguments = (read_rows(tmp_path), tmp_path)
    pairs = [("cycle", "vanilla")]
    other = [*references[1:], references[0]]
    with pytest.raises(SharingError, match=r"bleu is .* with the references of --data, but the result records"):
        segment_errors(*arguments, {TEST: other}, [TEST], "bleu", pairs)
    with pytest.raises(SharingError, match="has 60 lines, its references have 59"):
        segment_errors(*arguments, {TEST: references[1:]}, [TEST], "bleu", pairs)
    with pytest.raises(SharingError, match=f"--data: no test set {TEST}"):
        segment_errors(*arguments, {}, [TEST], "bleu", pairs)
