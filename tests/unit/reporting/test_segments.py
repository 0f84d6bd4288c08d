"""The part of a difference's error that comes from the choice of test sentences."""

from __future__ import annotations

import gzip
import json
import re

import numpy as np
import pytest
from evaluation_results import result, write
from sacrebleu.metrics import BLEU, CHRF, TER

from fairseq_sharing.errors import SharingError
from fairseq_sharing.reporting import segments
from fairseq_sharing.reporting.breakdown import by_length, differing_segments, lengths
from fairseq_sharing.reporting.kept_hypotheses import fingerprint
from fairseq_sharing.reporting.report import write_report
from fairseq_sharing.reporting.results import read_rows
from fairseq_sharing.reporting.segments import RawTexts, SegmentStatistics, segment_errors

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
                "hypothesis_sha256": fingerprint(hypotheses),
                "segments": len(references),
            }
            results.append(content)
    write(folder, *results)
    return references


@pytest.mark.parametrize("seeds", [(1,), (1, 2, 3)])
def test_error_over_segments_is_that_of_a_linear_metric(tmp_path, monkeypatch, seeds):
    """For the mean of a score per segment, the standard error is known: sd(d) / sqrt(S)."""

    class Mean:
        """The proportion of segments with an even number of words, as a metric."""

        def _extract_corpus_statistics(self, hypotheses, references):
            return [[float(len(set(line.split()))), 1.0] for line in hypotheses]

        def _compute_score_from_stats(self, stats):
            return type("Score", (), {"score": stats[0] / stats[1]})

    references = _study(tmp_path, seeds)
    monkeypatch.setattr(segments, "make_metric", lambda metric, signature: Mean())
    monkeypatch.setattr(segments, "_ROUNDING", 1000)
    monkeypatch.setattr(segments, "RESAMPLES", 2000)
    pair = ("cycle", "vanilla")
    errors = segment_errors(read_rows(tmp_path), tmp_path, {TEST: references}, [TEST], "bleu", [pair])
    values = [
        np.mean([[len(set(line.split())) for line in _texts(s + 10 * len(run), noise=noise)[1]] for s in seeds], axis=0)
        for run, noise in (("cycle", 0.2), ("vanilla", 0.3))
    ]
    expected = np.std(values[0] - values[1], ddof=1) / len(references) ** 0.5
    assert errors[pair] == pytest.approx(expected, rel=0.03)


def test_report_covers_the_sentences_where_hypotheses_and_references_are_at_hand(tmp_path, monkeypatch):
    references = _study(tmp_path)
    monkeypatch.setattr(segments, "RESAMPLES", 200)
    monkeypatch.setattr("fairseq_sharing.reporting.figures.draw", lambda *_: [])
    report = write_report(tmp_path, texts=RawTexts({TEST: references}, {TEST: references}))
    (error,) = report.conclusions.segments.values()
    assert error > 0
    again = write_report(tmp_path, texts=RawTexts({TEST: references}, {TEST: references}))
    assert again.conclusions.segments == report.conclusions.segments, "the generator is fixed"
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    low, high = report.conclusions.family.comparisons[0].widened(error)
    assert f"[{low:+.2f}, {high:+.2f}]" in text
    assert "With sentences" not in (write_report(tmp_path), (tmp_path / "table.md").read_text(encoding="utf-8"))[1]


@pytest.mark.parametrize("metric", ["bleu", "chrf", "chrf++", "ter"])
def test_metric_of_a_signature_is_the_one_that_gave_it(metric):
    for options in ({}, {"lowercase": True}):
        made = {
            "bleu": BLEU(tokenize="intl", **options),
            "chrf": CHRF(**options),
            "chrf++": CHRF(word_order=2, **options),
            "ter": TER(case_sensitive=not options),
        }[metric]
        references, hypotheses = _texts(1)
        made.corpus_score(hypotheses, [references])
        signature = str(made.get_signature())
        again = segments.make_metric(metric, signature)
        again.corpus_score(hypotheses, [references])
        assert str(again.get_signature()) == signature


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


def test_segments_in_which_rows_differ_most_are_quoted_with_all_seeds(tmp_path, monkeypatch):
    references = _study(tmp_path)
    sources = [f"source <b>{number}" for number in range(1, 61)]
    file = tmp_path / "hypotheses" / "cycle-seed1.de.gz"
    for name in ("cycle-seed1", "cycle-seed2", "vanilla-seed1", "vanilla-seed2"):
        file = tmp_path / "hypotheses" / f"{name}.de.gz"
        lines = gzip.decompress(file.read_bytes()).decode().splitlines()
        lines[6] = references[6] if name.startswith("cycle") else "xyz"
        lines[7] = "xyz" if name == "cycle-seed2" else references[7]
        file.write_bytes(gzip.compress("".join(line + "\n" for line in lines).encode()))
        content = json.loads((tmp_path / f"{name}.json").read_text())
        content["scores"][TEST]["hypothesis_sha256"] = fingerprint(lines)
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    texts = RawTexts({TEST: sources}, {TEST: references})
    page = differing_segments(read_rows(tmp_path), [("cycle", "vanilla")], tmp_path, texts)
    first, last = re.findall(r"### Segment (\d+): ([+-][\d.]+)", page)[::9]
    assert first == ("7", "+100.0")
    assert last[0] != "7"
    quoted = page.split("### Segment 7: ")[1].split("###")[0]
    assert "- source: source \\<b\\>7\n" in quoted, "HTML in a sentence is text on the page"
    assert f"- reference: {references[6]}\n" in quoted
    assert f"- cycle, seed 2 (100.0): {references[6]}\n" in quoted
    assert "- vanilla, seed 1 (0.0): xyz\n" in quoted
    assert "### Segment 8: -50.0" in page


def test_scores_by_reference_length_and_output_lengths_are_means_over_seeds(tmp_path):
    buckets = [{"up_to": 10, "segments": 600, "bleu": 40.0}, {"up_to": None, "segments": 400, "bleu": 30.0}]
    results = []
    for seed in (1, 2):
        content = result("vanilla", "none", seed)
        mine = [{**bucket, "bleu": bucket["bleu"] + seed} for bucket in buckets]
        content["scores"][TEST] |= {"by_length": mine, "length_ratio": 0.9 + seed / 100, "empty": seed, "over_long": 0}
        results.append(content)
    rows = read_rows(write(tmp_path, *results, result("cycle", "cycle")))
    assert by_length(rows, TEST) == (
        ["Row", "up to 10 (600)", "above 10 (400)"],
        [["vanilla", "41.50 ± 0.71", "31.50 ± 0.71"]],
    )
    assert lengths(rows)[1] == [["vanilla", TEST, "0.915 ± 0.007", "1.5 ± 0.7", "0.0 ± 0.0"]]
    old = read_rows(write(tmp_path / "old", result("vanilla")))
    assert (by_length(old, TEST)[1], lengths(old)[1]) == ([], [])


@pytest.mark.parametrize(
    ("metric", "signature"),
    [
        ("bleu", "nrefs:1|case:mixed|eff:no|tok:zh|smooth:exp|version:2.6.0"),
        ("chrf++", "nrefs:1|case:mixed|eff:yes|nc:6|nw:2|space:no|version:2.6.0"),
        ("ter", "nrefs:1|case:mixed|tok:tercom|norm:yes|punct:yes|asian:yes|version:2.6.0"),
    ],
)
def test_metrics_are_made_from_their_signatures(metric, signature):
    found = segments.make_metric(metric, signature)
    found.corpus_score(["a b c d"], [["a b c d"]])
    version = re.compile(r"version:.*")
    assert version.sub("", str(found.get_signature())) == version.sub("", signature)
    with pytest.raises(SharingError, match="--data: perplexity; allowed: bleu, chrf"):
        segments.make_metric("perplexity", signature)
    with pytest.raises(SharingError, match="--data: unknown tokenizer in the signature"):
        segments.make_metric("bleu", "nrefs:1|case:mixed|tok:mine|smooth:exp")
