"""Verdicts of a report: what is compared, what the intervals say, and what is missing or unusual."""

from __future__ import annotations

import csv
import json

import pytest
from evaluation_results import result, write

from fairseq_sharing.commands import main
from fairseq_sharing.errors import SharingError
from fairseq_sharing.reporting.comparison_plan import ComparisonPlan, make_plan
from fairseq_sharing.reporting.conclusions import conclude
from fairseq_sharing.reporting.notes import notes
from fairseq_sharing.reporting.report import write_report
from fairseq_sharing.reporting.results import read_rows

# Scores per seed.
STUDY = {
    "vanilla": (36.0, 36.1, 36.2, 36.1),
    "cycle": (36.8, 36.9, 37.0),
    "sequence": (35.0, 35.1, 35.2),
    "universal": (36.1, 36.15, 36.2),
    "cycle_rev": (36.3, 36.5, 36.4),
}


def _write(folder, study=STUDY, **changes):
    strategies = {"vanilla": "none"}
    return write(
        folder,
        *(
            result(run, strategies.get(run, run), seed, bleu, **changes)
            for run, scores in study.items()
            for seed, bleu in enumerate(scores, start=1)
        ),
    )


def _conclude(folder, **flags):
    rows = read_rows(folder)
    return rows, conclude(rows, make_plan(folder, rows, flags))


def _notes(folder, **flags):
    return notes(*_conclude(folder, **flags))


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr("fairseq_sharing.reporting.figures.draw", lambda *_: [])


def test_verdicts_follow_the_simultaneous_intervals(tmp_path):
    _, found = _conclude(_write(tmp_path))
    verdicts = {pair[0]: found.verdict(pair) for pair in found.pairs}
    assert (verdicts["cycle"], verdicts["sequence"]) == ("better", "worse")
    assert verdicts["universal"] == "equivalent within 0.3"
    assert verdicts["cycle_rev"] == "better"
    _, narrow = _conclude(tmp_path, margin=0.1)
    assert narrow.verdict(("universal", "vanilla")) == "inconclusive; about 14 seeds needed to detect 0.1 BLEU"
    wide = {"vanilla": (36.0, 36.8), "cycle": (36.1, 36.9), "sequence": (36.2, 37.0)}
    _, found = _conclude(_write(tmp_path / "wide", wide))
    assert found.pooled.deviation == pytest.approx(0.5657, abs=1e-4)
    assert found.verdict(("cycle", "vanilla")) == "inconclusive; about 22 seeds needed to detect 0.5 BLEU"


def test_lower_is_better_for_ter(tmp_path):
    folder = _write(tmp_path)
    for file in folder.glob("*.json"):
        content = json.loads(file.read_text())
        score = content["scores"]["test_2016_flickr"]
        score |= {"ter": 100 - score["bleu"], "signature": {**score["signature"], "ter": "nrefs:1|case:mixed"}}
        file.write_text(json.dumps(content))
    _, found = _conclude(folder, metric="ter")
    assert found.verdict(("cycle", "vanilla")) == "better"
    assert found.verdict(("sequence", "vanilla")) == "worse"
    assert found.comparison(("cycle", "vanilla")).difference == pytest.approx(-0.8)
    assert any("TER test_2016_flickr" in note and "Lower is better." in note for note in _notes(folder, metric="ter"))


def test_one_seed_makes_no_statement(tmp_path):
    _, found = _conclude(_write(tmp_path, {**STUDY, "cycle_rev": (40.0,)}))
    assert found.verdict(("cycle_rev", "vanilla")) == "1 seed: no statement about the method"
    assert found.verdict(("cycle", "vanilla")) == "better"
    assert found.spread("cycle_rev").deviation is None
    single = _write(tmp_path / "single", {"vanilla": (30.0,), "cycle": (31.0, 33.0)})
    _, found = _conclude(single)
    assert found.verdict(("cycle", "vanilla")) == "1 seed: no statement about the method", "the baseline has one seed"
    few = _write(tmp_path / "few", {"vanilla": (30.0,), "cycle": (31.0,)})
    assert _notes(few)[0] == "1 seed: no statement about the method."


def test_equal_scores_of_all_seeds_are_not_tested(tmp_path):
    _, found = _conclude(_write(tmp_path, {"vanilla": (30.0, 30.0), "cycle": (31.0, 31.0)}))
    assert found.verdict(("cycle", "vanilla")) == "no spread: check that seeds differ"


def test_primary_score_is_the_mean_of_the_test_sets_or_a_chosen_one(tmp_path):
    folder = _write(tmp_path, {"vanilla": (30.0, 31.0), "cycle": (32.0, 33.0)})
    for file in folder.glob("*.json"):
        content = json.loads(file.read_text())
        score = content["scores"]["test_2016_flickr"]
        content["scores"]["other"] = {**score, "bleu": score["bleu"] + 10 + content["seed"]}
        file.write_text(json.dumps(content))
    _, found = _conclude(folder)
    assert found.runs["vanilla"] == {1: pytest.approx(35.5), 2: pytest.approx(37.0)}
    assert found.score_name == "BLEU, mean of 2 test sets"
    _, found = _conclude(folder, primary="other")
    assert found.runs["vanilla"] == {1: 41.0, 2: 43.0}
    with pytest.raises(SharingError, match="primary: 'nothing'; allowed: mean, test_2016_flickr, other"):
        _conclude(folder, primary="nothing")
    text = _report(folder)
    assert "## Differences per test set, BLEU" in text
    assert "cycle - vanilla" in text
    content["scores"].pop("other")
    write(folder, content)
    with pytest.raises(SharingError, match=r"-seed2: no bleu on other, which is part of the primary score; evaluate"):
        _conclude(folder)
    assert _conclude(folder, primary="test_2016_flickr")[1].family is not None


def _report(folder, **flags):
    write_report(folder, flags=flags)
    return (folder / "table.md").read_text(encoding="utf-8")


def test_tables_show_difference_interval_p_value_and_verdict(tmp_path):
    folder = _write(tmp_path)
    report = write_report(folder)
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (folder / "table.md").read_text(encoding="utf-8").splitlines()
    ]
    headers = next(line for line in lines if line[0] == "Row")
    assert headers == ["Row", "n", "mean ± sd", "Difference [95% interval]", "Adjusted p", "g", "Verdict"]
    one = report.conclusions.comparison(("cycle", "vanilla"))
    low, high = one.interval
    (cycle,) = [line for line in lines if line[0] == "cycle" and line[-1] == "better"]
    assert cycle[:4] == ["cycle", "3", "36.90 ± 0.10", f"+0.80 [{low:+.2f}, {high:+.2f}]"]
    assert cycle[4] == "<0.001"
    assert ["vanilla", "4", "36.10 ± 0.08", "-", "-", "-", "baseline"] in lines
    assert "better" in (folder / "index.html").read_text(encoding="utf-8")
    assert "better" in (folder / "table.tex").read_text(encoding="utf-8")
    with (folder / "comparison.csv").open(encoding="utf-8", newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["row"] == "cycle")
    assert float(row["difference"]) == pytest.approx(0.8)
    assert (float(row["low"]), float(row["high"])) == pytest.approx((low, high))
    assert (row["n"], row["n_compared"], row["verdict"]) == ("3", "4", "better")


def test_permutation_p_is_beside_the_others_where_it_can_reach_the_level(tmp_path):
    four = {"vanilla": (36.0, 36.1, 36.2, 36.15), "cycle": (36.8, 36.9, 37.0, 36.85)}
    text = _report(_write(tmp_path, four))
    assert "Permutation p, not adjusted" in text
    assert "0.029" in text


def test_footnote_names_replication_spread_family_and_correction(tmp_path):
    text = " ".join(_notes(_write(tmp_path)))
    assert "over training runs (n seeds), the unit of replication" in text
    assert "Pooled standard deviation between runs: 0.09 (11 df)." in text
    assert "Comparison: all rows against vanilla, BLEU test_2016_flickr. p-values and intervals: Dunnett's test" in text
    assert "Higher is better." in text
    separate = " ".join(_notes(tmp_path, variance="separate"))
    assert "Welch's t tests, Holm's correction; intervals: Bonferroni" in separate
    paired = " ".join(_notes(tmp_path, paired_seeds=True))
    assert "t tests of the differences between runs with equal seeds" in paired


def test_chosen_pairs_replace_the_baseline(tmp_path):
    folder = _write(tmp_path / "study")
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("# depth\ncycle universal\n\nsequence cycle\n")
    text = _report(folder, family=str(pairs))
    assert "Compared with" in text
    _, found = _conclude(folder, family=str(pairs))
    assert [one.pair for one in found.family.comparisons] == [("cycle", "universal"), ("sequence", "cycle")]
    assert found.family.method == "Holm"
    for line, shown in (("cycle", "'cycle'"), ("cycle cycle", "'cycle cycle'"), ("cycle nothing", "'cycle nothing'")):
        pairs.write_text(f"{line}\n")
        with pytest.raises(SharingError, match=f"line 1: {shown}; allowed: two different rows of vanilla, universal"):
            _conclude(folder, family=str(pairs))
    pairs.write_text("")
    with pytest.raises(SharingError, match="contains no pair; allowed: two row names per line"):
        _conclude(folder, family=str(pairs))
    with pytest.raises(SharingError, match="allowed: rows, or a file"):
        _conclude(folder, family="nothing")


DECLARED = """\
study: multi30k
question: Does sharing help?
compare: {baseline: cycle, primary: test_2016_flickr, metric: bleu, margin: 0.4}
earlier: [{baseline: vanilla, margin: 0.3}]
seeds: {vanilla: [1, 2, 3, 4, 5, 6], cycle: [1, 2, 3], absent: [1]}
"""


def test_declaration_of_the_study_is_followed_and_missing_runs_are_listed(tmp_path):
    folder = _write(tmp_path)
    (folder / "study.yaml").write_text(DECLARED)
    _, found = _conclude(folder)
    assert (found.plan.baseline, found.plan.primary, found.plan.margin) == ("cycle", "test_2016_flickr", 0.4)
    lines = _notes(folder)
    assert "Declared runs without a result: vanilla (seeds 5, 6); absent (seed 1)." in lines
    assert "The comparison was changed after runs had finished; earlier: baseline vanilla, margin 0.3." in lines
    overridden = _notes(folder, baseline="vanilla")
    assert "Flags of this report override the study's declaration: baseline." in overridden


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("compare: {base: cycle}", r"study\.yaml: compare: unknown key 'base'; allowed: baseline, primary, metric"),
        ("compare: 3", r"study\.yaml: compare: 3; allowed: a mapping"),
        ("seeds: [1]", r"study\.yaml: seeds: \[1\]; allowed: a mapping of rows to lists of whole numbers"),
        ("compare: {baseline: 'a|b'}", r"study\.yaml: row: 'a\|b'; allowed: letters, digits"),
        ("earlier: [3]", r"study\.yaml: earlier: \[3\]; allowed: a list of compare blocks"),
        ("earlier: 5", r"study\.yaml: earlier: 5; allowed: a list of compare blocks"),
        ("earlier: [{baseline: 'a|b'}]", r"study\.yaml: earlier: baseline: 'a\|b'; allowed: letters, digits"),
        ("compare: {margin: wide}", "margin: 'wide'; allowed: a number above 0 and below 100"),
        ("compare: {metric: rouge}", "metric: 'rouge'; allowed: bleu, chrf"),
    ],
)
def test_a_malformed_declaration_is_refused(tmp_path, text, message):
    folder = _write(tmp_path)
    (folder / "study.yaml").write_text(text)
    with pytest.raises(SharingError, match=message):
        _conclude(folder)


def test_without_its_baseline_a_report_is_descriptive(tmp_path):
    folder = _write(tmp_path, {"cycle": (36.8, 36.9), "sequence": (35.0, 35.1)})
    assert _conclude(folder)[1].pairs == []
    assert any(note.startswith("No comparison: it requires a baseline") for note in _notes(folder))
    (folder / "study.yaml").write_text("compare: {baseline: vanilla_admin}")
    assert _notes(folder)[0] == (
        "The baseline of the study, vanilla_admin, has no result, so no row is compared with it."
    )
    assert "## Comparison" not in _report(folder)
    with pytest.raises(SharingError, match="--baseline: no row 'vanilla'; allowed: sequence, cycle"):
        _conclude(folder, baseline="vanilla")


def test_unusual_runs_are_described(tmp_path):
    calm = {"vanilla": (36.0, 36.1), "sequence": (36.0, 36.1), "universal": (36.0, 36.1)}
    folder = _write(tmp_path, {**calm, "cycle": (36.0, 36.1, 36.0, 36.1, 36.0, 36.1, 36.0, 36.1, 36.0, 36.1, 34.0)})
    assert any("runs of cycle differ from its mean" in note and "34.00" in note for note in _notes(folder))
    split = "Check on equal runs: the 11 runs of cycle, split into two groups, are told apart in "
    assert any(note.startswith(split) for note in _notes(folder))


def test_seeds_with_equal_hypotheses_or_other_recipes_are_described(tmp_path):
    folder = _write(tmp_path, {"vanilla": (36.0, 36.1), "cycle": (36.0, 36.0)})
    for file in folder.glob("cycle-*.json"):
        content = json.loads(file.read_text())
        content["scores"]["test_2016_flickr"]["hypothesis_sha256"] = "0"
        content["command"] = ["fairseq-train", "--lr", f"0.00{content['seed']}", "--seed", str(content["seed"])]
        file.write_text(json.dumps(content))
    lines = _notes(folder)
    assert "Warning: seeds 1 and 2 of cycle have equal hypotheses: check that seeds differ." in lines
    assert "Warning: the seeds of cycle differ in: lr." in lines


def test_rows_of_a_seed_on_other_processors_or_threads_are_described(tmp_path):
    one = {"kind": "cpu", "name": "Some CPU", "count": 2, "threads": 1}
    folder = _write(tmp_path, {"vanilla": (36.0, 36.1)}, device=one)
    assert not any("differ in processor" in note for note in _notes(folder))
    write(folder, *(result("cycle", "cycle", seed, 36.0 + seed, device={**one, "threads": 2}) for seed in (1, 2)))
    assert (
        "Warning: rows of seeds 1, 2 differ in processor or threads: vanilla on Some CPU, 2 CPU cores, 1 thread; "
        "cycle on Some CPU, 2 CPU cores, 2 threads." in _notes(folder)
    )


def test_calibrate_simulates_the_study_and_splits_a_row(tmp_path, capsys):
    folder = _write(tmp_path, {"vanilla": tuple(36 + i * 0.1 for i in range(8)), "cycle": (36.0, 36.4)})
    assert main(["calibrate", str(folder), "--row", "vanilla", "--draws", "200"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("8 runs of vanilla, split into two groups in many ways: told apart in ")
    assert "200 simulated studies of equal methods: 2 rows with 8, 2 seeds, standard deviation 0.25." in told
    for flags, message in (
        (["--row", "cycle"], "--row: cycle has 2 runs; allowed: a row with 8 or more"),
        (["--row", "deep"], "--row: no row 'deep' in"),
        (["--draws", "9"], "--draws: 9; allowed: whole numbers from 100"),
        (["--sd", "0"], "--sd: 0; allowed: a number above 0"),
    ):
        assert main(["calibrate", str(folder), *flags]) == 2
        assert message in capsys.readouterr().err
    assert main(["calibrate", "--row", "vanilla"]) == 2
    assert "--row vanilla: requires DIR" in capsys.readouterr().err


def test_report_s_flags_reach_the_comparison(tmp_path, capsys):
    folder = _write(tmp_path)
    flags = ["--baseline", "universal", "--primary", "test_2016_flickr", "--margin", "0.5", "--variance", "separate"]
    assert main(["report", str(folder), *flags, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (lines,) = [table for name, table in told["comparisons"].items() if name.startswith("Comparison with universal")]
    assert {line["Row"]: line["Verdict"] for line in lines}["vanilla"] == "equivalent within 0.5"
    assert main(["report", str(folder), "--data", str(tmp_path)]) == 2
    assert "names no test sets; allowed: a directory made by fairseq-sharing prepare" in capsys.readouterr().err


def test_plan_knows_the_direction_of_its_metric():
    assert ComparisonPlan("vanilla", "ter").of.lower_is_better
    assert not ComparisonPlan("vanilla", "chrf++").of.lower_is_better
