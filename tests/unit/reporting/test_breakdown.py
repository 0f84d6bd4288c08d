from evaluation_results import result, write

from fairseq_sharing.reporting import figures
from fairseq_sharing.reporting.breakdown import breakdowns
from fairseq_sharing.reporting.report import write_report
from fairseq_sharing.reporting.results import read_rows

TEST = "test_2016_flickr"


def _result(run, sharing, seed, short, long, ratio=1.0, empty=0, over_long=0):
    content = result(run, sharing, seed)
    content["scores"][TEST] |= {
        "by_length": [
            {"up_to": 10, "segments": 600, "bleu": short},
            {"up_to": 30, "segments": 300, "bleu": long},
            {"up_to": None, "segments": 100, "bleu": 20.0},
        ],
        "length_ratio": ratio,
        "empty": empty,
        "over_long": over_long,
    }
    return content


def test_bleu_by_length_is_the_mean_over_seeds(tmp_path):
    write(
        tmp_path,
        _result("vanilla", "none", 1, 40.0, 30.0),
        _result("vanilla", "none", 2, 42.0, 31.0),
        _result("cycle", "cycle", 1, 41.5, 33.25),
        result("universal", "universal"),  # of an earlier version
    )
    by_length, _ = breakdowns(read_rows(tmp_path), ["Vanilla", "Universal", "Cycle"])
    assert by_length.heading == f"BLEU by reference length: {TEST}"
    assert by_length.headers == ["Model", "Seeds", "1 to 10 (600)", "11 to 30 (300)", "over 30 (100)"]
    assert by_length.cells == [
        ["Vanilla", "2", "41.00 ± 1.41", "30.50 ± 0.71", "20.00 ± 0.00"],
        ["Universal", "0", "-", "-", "-"],
        ["Cycle", "1", "41.50", "33.25", "20.00"],
    ]


def test_lengths_are_means_over_seeds(tmp_path):
    write(
        tmp_path,
        _result("vanilla", "none", 1, 40.0, 30.0, 0.98, 1, 0),
        _result("vanilla", "none", 2, 42.0, 31.0, 1.0, 0, 5),
    )
    _, lengths = breakdowns(read_rows(tmp_path), ["Vanilla"])
    assert lengths.headers == ["Model", "Test set", "Seeds", "Segments", "Length ratio", "Empty", "Over-long"]
    assert lengths.cells == [["Vanilla", TEST, "2", "1,000", "0.990 ± 0.014", "0.5", "2.5"]]


def test_page_shows_both_tables_and_none_for_earlier_results(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "draw", lambda rows, folder: [])
    write_report(write(tmp_path / "old", result()))
    assert "reference length" not in (tmp_path / "old" / "index.html").read_text(encoding="utf-8")
    write_report(write(tmp_path / "new", _result("vanilla", "none", 1, 40.125, 30.0)))
    page = (tmp_path / "new" / "index.html").read_text(encoding="utf-8")
    assert f"<h2>BLEU by reference length: {TEST}</h2>" in page
    assert ">40.12<" in page
    assert "<h2>Length of the translations</h2>" in page


def test_one_bucket_has_all_segments(tmp_path):
    content = result()
    content["scores"][TEST]["by_length"] = [{"up_to": None, "segments": 20, "bleu": 9.0}]
    (table,) = breakdowns(read_rows(write(tmp_path, content)), ["Vanilla"])
    assert table.headers[2:] == ["all (20)"]
