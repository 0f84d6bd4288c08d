"""Comparison with the paper's table, and compound-split BLEU."""

from __future__ import annotations

import statistics

import pytest
from evaluation_results import result, write

from fairseq_sharing.evaluation.compound_split import compound_split_bleu, split_compounds
from fairseq_sharing.experiment.config import find_study
from fairseq_sharing.reporting import paper
from fairseq_sharing.reporting.report import write_report
from fairseq_sharing.reporting.results import read_rows

SCORE = result()["scores"]["test_2016_flickr"]


def scores(shift: float, tests=paper.TESTS) -> dict:
    """Make scores that exceed the paper's Vanilla by a shift, with intervals of one point to each side."""
    ours = {test: score + shift for test, score in zip(paper.TESTS, paper.ROWS["vanilla"].scores, strict=True)}
    return {test: {**SCORE, "bleu": ours[test], "bleu_interval": [ours[test] - 1, ours[test] + 1]} for test in tests}


def rows(tmp_path, *results):
    return read_rows(write(tmp_path, *results))


def test_the_paper_s_rows_are_those_of_the_table_and_their_averages_add_up():
    assert list(paper.ROWS) == list(find_study("wmt16_en_de").rows)
    for name, row in paper.ROWS.items():
        if name != "universal_n12":
            assert statistics.fmean(row.scores) == pytest.approx(row.average, abs=0.011), name


def test_a_row_is_compared_with_the_paper_by_difference_and_speed(tmp_path):
    found = rows(
        tmp_path,
        result("vanilla", dataset="wmt16_en_de", scores=scores(0.5), tokens_per_second=1000.0),
        result("cycle_n12", "cycle", dataset="wmt16_en_de", scores=scores(1.0), tokens_per_second=640.0),
    )
    headers, cells = paper.compare(found)
    vanilla, cycle = (dict(zip([f"{i} {h}" for i, h in enumerate(headers)], line, strict=True)) for line in cells)
    assert vanilla["0 Model"] == "Vanilla"
    assert (vanilla["3 Speed"], cycle["3 Speed"], cycle["4 Speed (paper)"]) == ("1.00", "0.64", "0.63")
    assert vanilla["5 Average"] == "27.07 / 26.57 / +0.50"
    assert vanilla["6 newstest2010"] == "24.66 / 24.16 / +0.50"
    assert cycle["6 newstest2010"] == "25.16 / 24.51 / +0.65"
    assert not any("WMT16 (4.5M pairs)" in note for note in paper.notes(found))


def test_speeds_of_other_machines_are_not_compared(tmp_path):
    gpu = {"kind": "cuda", "name": "Some GPU", "count": 1}
    found = rows(
        tmp_path,
        result("vanilla", scores=scores(0)),
        result("cycle_n12", "cycle", scores=scores(0)),
        result("cycle_n12", "cycle", seed=2, scores=scores(0), device=gpu),
    )
    _, (vanilla, cycle) = paper.compare(found)
    assert (vanilla[3], cycle[3]) == ("1.00", "-")


def test_several_seeds_have_the_interval_of_their_mean(tmp_path):
    found = rows(tmp_path, *(result("vanilla", seed=seed, scores=scores(seed)) for seed in (1, 2, 3)))
    difference = paper.Difference.of(found[0], "newstest2014", 27.13)
    half = 4.302653 / 3**0.5  # Student's t of 2 degrees of freedom, a standard deviation of 1
    assert difference.ours == pytest.approx(27.13 + 2)
    assert difference.interval == pytest.approx((2 - half, 2 + half))
    average = paper.Difference.of_average(found[0], 26.57)
    assert average.ours == pytest.approx(26.57 + 2, abs=0.01)
    assert average.interval == pytest.approx((2 - half, 2 + half), abs=0.01)


def test_other_training_data_is_noted_and_missing_test_sets_leave_gaps(tmp_path):
    some = scores(0, paper.TESTS[3:])
    found = rows(tmp_path, result("universal_n12", "universal", dataset="news_commentary", scores=some))
    assert any("these rows on news_commentary" in note for note in paper.notes(found))
    headers, ((model, _, _, speed, _, average, *cells),) = paper.compare(found)
    assert (model, speed, average) == ("Universal, N=12", "-", "- / 26.77")
    assert headers[6:] == list(paper.TESTS[3:])
    assert cells[0] == "26.13 / -"


def test_report_has_the_page_only_for_the_paper_s_test_sets(tmp_path):
    ours = scores(0)
    ours["newstest2014"]["compound_split_bleu"] = 28.4
    page = write_report(write(tmp_path / "a", result("vanilla", dataset="wmt16_en_de", scores=ours)))
    (file,) = [file for file in page.files if file.name == "paper.md"]
    text = file.read_text()
    assert "27.13 / 27.13 / +0.00" in text
    assert "compounds split on newstest2014 (not comparable with sacreBLEU): Vanilla 28.40." in text
    other = write_report(write(tmp_path / "b", result("vanilla")))
    assert "paper.md" not in {file.name for file in other.files}


def test_compounds_are_split_at_hyphens_within_words():
    assert split_compounds("ein EU-Mitglied - und Nord-Süd-Achse") == (
        "ein EU ##AT##-##AT## Mitglied - und Nord ##AT##-##AT## Süd ##AT##-##AT## Achse"
    )


def test_compound_split_bleu_counts_the_parts():
    references = ["Das ist ein Beispiel-Satz mit vielen Worten ."] * 2
    same = compound_split_bleu(references, references, "de")
    assert same == pytest.approx(100)
    near = [reference.replace("Beispiel-Satz", "Test-Satz") for reference in references]
    from sacrebleu.metrics import BLEU

    whole = BLEU(tokenize="none", smooth_method="none", force=True).corpus_score(near, [references]).score
    assert whole < compound_split_bleu(near, references, "de") < 100
