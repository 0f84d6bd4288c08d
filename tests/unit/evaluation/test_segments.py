import json

import pytest
from evaluation_results import result, write
from sacrebleu import sentence_chrf

from fairseq_sharing.commands import main
from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.kept_hypotheses import keep
from fairseq_sharing.evaluation.segments import compare_rows
from fairseq_sharing.reporting import figures
from fairseq_sharing.reporting.results import read_rows

REFERENCES = ["Der Hund <läuft>.", "Zwei Männer sitzen.", "Eine Frau spielt.", "Das Kind wirft."]
BAD = "Nichts davon."
SYSTEMS = {
    # Segment 1: cycle is better in all seeds. 2: only in one. 3: vanilla is better. 4: equal.
    ("vanilla", 1): [BAD, BAD, REFERENCES[2], "Das Kind"],
    ("vanilla", 2): ["Der", REFERENCES[1], REFERENCES[2], "Das Kind"],
    ("cycle", 1): [REFERENCES[0], REFERENCES[1], "Eine Frau", "Das Kind"],
    ("cycle", 2): ["Der Hund", BAD, "Eine Frau", "Das Kind"],
}


@pytest.fixture
def study(tmp_path):
    """A folder of results with hypotheses, and the data directory."""
    folder, data = tmp_path / "study", tmp_path / "data"
    for (run, seed), lines in SYSTEMS.items():
        content = result(run, {"vanilla": "none"}.get(run, run), seed)
        kept = keep(lines, folder, "test_2016_flickr", ("en", "de"), f"{run}-seed{seed}")
        content["scores"]["test_2016_flickr"] |= kept
        write(folder, content)
    (data / "raw").mkdir(parents=True)
    (data / "raw/t.de").write_text("".join(f"{line}\n" for line in REFERENCES), encoding="utf-8")
    (data / "raw/t.en").write_text("".join(f"source {i}\n" for i in (1, 2, 3, 4)), encoding="utf-8")
    test = {"name": "test_2016_flickr", "subset": "test", "segments": 4, "source": "raw/t.en", "reference": "raw/t.de"}
    (data / "manifest.json").write_text(json.dumps({"dataset": "multi30k", "tests": [test]}))
    return folder, data


def test_segments_that_differ_in_all_seeds_are_shown(study):
    folder, data = study
    (found,) = compare_rows(read_rows(folder), ["Vanilla", "Cycle"], folder, data)
    assert (found.test, found.name, found.baseline) == ("test_2016_flickr", "Cycle", "Vanilla")
    assert [(segment.line, segment.better) for segment in found.segments] == [(1, "Cycle"), (3, "Vanilla")]
    first = found.segments[0]
    assert (first.source, first.reference) == ("source 1", REFERENCES[0])
    assert [(system, text) for system, _, text in first.translations] == [
        ("cycle, seed 1", REFERENCES[0]),
        ("cycle, seed 2", "Der Hund"),
        ("vanilla, seed 1", BAD),
        ("vanilla, seed 2", "Der"),
    ]
    chrf = {text: sentence_chrf(text, [REFERENCES[0]]).score for _, _, text in first.translations}
    assert [score for _, score, _ in first.translations] == [chrf[text] for _, _, text in first.translations]
    assert first.gap == pytest.approx(min(chrf[REFERENCES[0]], chrf["Der Hund"]) - max(chrf[BAD], chrf["Der"]))


def test_page_of_segments_is_written_only_with_the_data(study, monkeypatch, capsys):
    folder, data = study
    monkeypatch.setattr(figures, "draw", lambda rows, folder: [])
    assert main(["report", str(folder)]) == 0
    assert not (folder / "segments.html").exists()
    capsys.readouterr()
    assert main(["report", str(folder), "--data", str(data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"][-1] == f"{folder}/segments.html"
    text = (folder / "segments.html").read_text(encoding="utf-8")
    assert "Der Hund &lt;läuft&gt;." in text
    assert "Line 3: Vanilla" in text
    assert "source 1" not in (folder / "index.html").read_text(encoding="utf-8")


def test_other_data_and_changed_hypotheses_are_refused(study):
    folder, data = study
    rows = read_rows(folder)

    def error():
        with pytest.raises(SharingError) as caught:
            compare_rows(rows, ["Vanilla", "Cycle"], folder, data)
        return str(caught.value)

    kept = folder / rows[0]["scores"]["test_2016_flickr"]["hypotheses"]
    (data / "raw/t.de").write_text("a\nb\n")
    assert error() == f"{kept} has 4 lines, the reference of test_2016_flickr has 2"
    keep(["x"], folder, "test_2016_flickr", ("en", "de"), "vanilla-seed1")
    assert error().startswith(f"{kept}: not the translations of the result (its SHA-256 differs")
    (data / "manifest.json").write_text('{"dataset": "toy", "tests": []}')
    assert error() == f"--data {data}: contains toy; allowed: multi30k, the dataset of the results"
    (data / "manifest.json").unlink()
    assert error() == f"{data}/manifest.json: no such file; allowed: the prepared data directory"
