import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fairseq_sharing.commands import main
from fairseq_sharing.evaluation.scoring import Scorer
from fairseq_sharing.files import read_lines

MIRROR = os.environ.get("FAIRSEQ_SHARING_MIRROR")
mirror = pytest.mark.skipif(not MIRROR, reason="FAIRSEQ_SHARING_MIRROR is not set to a folder with real text")
NEWSTEST = Path(MIRROR or "") / "wmt-newstest"


def _system(name):
    return str(NEWSTEST / "systems" / f"newstest2017.{name}.en-de.gz")


@mirror
@pytest.mark.parametrize(
    ("system", "bleu", "chrf"),
    [
        # Published in sacreBLEU's test.sh (BLEU by mteval-v13a.pl) and README, with the digits given there.
        ("uedin-nmt.4722", "28.30", None),
        ("online-B.0", "26.65", "56.3"),
        ("LIUM-NMT.4900", "26.60", "55.9"),
        ("C-3MA.4959", "22.67", "51.9533"),
    ],
)
def test_published_scores_of_newstest2017(system, bleu, chrf, capsys):
    reference = NEWSTEST / "newstest2017.de.gz"
    if system == "C-3MA.4959":
        status = main(["evaluate", "--hypothesis", _system(system), "--reference", str(reference), "--json"])
        assert status == 0
        scores = json.loads(capsys.readouterr().out)
    else:
        scorer = Scorer([list(read_lines(reference))])
        del scorer.metrics["ter"]  # takes most of the time
        scores = scorer.scores(list(read_lines(Path(_system(system)))))
    assert f"{scores['bleu']:.2f}" == bleu
    assert scores["segments"] == 3004
    if chrf is not None:
        assert f"{scores['chrf']:.{len(chrf.split('.')[1])}f}" == chrf


def test_a_file_that_is_given_twice_has_two_rows(tmp_path, capsys):
    for name, text in (("one", "Ein Hund läuft.\nEr wartet.\n"), ("other", "Ein Hund rennt.\nSie wartet.\n")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    assert main(["evaluate", "--hypothesis", one, other, one, "--reference", one]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("100.00" in line for line in lines) == 2
    assert sum("p=" in line for line in lines) == 2, "the second and the third, not the baseline"


def test_systems_are_compared_under_a_heading_that_names_the_files(tmp_path, capsys):
    text = ["Ein kleiner Hund läuft.", "Zwei Männer sitzen auf einer Bank.", "Eine Frau spielt Geige.", "Er wartet."]
    files = {
        "a": text,
        "b": ["Ein Hund läuft.", "Zwei Männer auf der Bank.", "Frau spielt Geige.", "Er wartet."],
        "c": text,
        "r1": text,
        "r2": ["Ein Hund rennt.", "Zwei Männer auf einer Bank.", "Eine Frau geigt.", "Er wartet noch."],
    }
    paths = {name: _write(tmp_path / name, "".join(f"{line}\n" for line in lines)) for name, lines in files.items()}
    references = ["--reference", paths["r1"], paths["r2"]]
    assert main(["evaluate", "--hypothesis", paths["a"], paths["b"], paths["c"], *references, "--json"]) == 0
    first, second, third = json.loads(capsys.readouterr().out)
    assert [system["hypothesis"] for system in (first, second, third)] == [paths["a"], paths["b"], paths["c"]]
    assert first["p_value"] is None
    assert third["p_value"] == {"bleu": 1.0, "chrf": 1.0, "chrf++": 1.0, "ter": 1.0}
    assert 0.05 < second["p_value"]["bleu"] < 1
    assert first["signature"]["ter"].startswith("nrefs:2|case:mixed")

    def table(*names):
        assert main(["evaluate", "--hypothesis", *(paths[name] for name in names), *references]) == 0
        return capsys.readouterr().out

    both = table("a", "b")
    assert both.startswith("these two files, against")
    assert "p: paired approximate randomization against" in both
    assert "these two files only" in " ".join(both.split())
    assert "chrf++: nrefs:2" in both
    assert table("a", "b", "c").startswith("these files, against")
    single = table("a")
    assert single.startswith("this file, against")
    assert "paired" not in single


def _write(path, text):
    path.write_bytes(text.encode())
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hypothesis", "h2", "--reference", "r3"], "h2 has 2 lines, its reference r3 has 3"),
        (["--hypothesis", "h2"], "give a RUN, or both --hypothesis and --reference"),
        ([], "give a RUN, or both --hypothesis and --reference"),
        (["--hypothesis", "h2", "--reference", "none"], "none: no such file"),
        (["no_run"], "no_run: no such run directory"),
        (["no_run", "--reference", "r3"], "--reference: allowed only with plain files"),
        (["--hypothesis", "h2", "--reference", "r3", "--beam", "4"], "--beam: allowed only with a RUN"),
        (["--hypothesis", "r3", "--reference", "r3", "--tokenize", "moses"], "tokenize: 'moses'; allowed: 13a, char, "),
        (["."], ".: not a run directory of fairseq-sharing train"),
    ],
)
def test_bad_input_ends_in_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _write(tmp_path / "h2", "eins\u2028und\nzwei\n")
    _write(tmp_path / "r3", "eins\nzwei\ndrei\n")
    assert main(["evaluate", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"fairseq-sharing evaluate: error: {message}")
    assert error.count("\n") == 1


def test_the_tokenizer_depends_on_the_language_or_the_flag(tmp_path, capsys):
    files = [
        "--hypothesis",
        _write(tmp_path / "h", "一只小狗在跑步\n"),
        "--reference",
        _write(tmp_path / "r", "一只狗在跑步\n"),
    ]

    def scored(*flags):
        assert main(["evaluate", *files, "--json", *flags]) == 0
        scores = json.loads(capsys.readouterr().out)
        return scores["signature"]["bleu"].split("|tok:")[1].split("|")[0], scores["bleu"]

    by_hand = 100 * (6 / 7 * 4 / 6 * 2 / 5 * 1 / 4) ** (1 / 4)
    for language in ("zh", "zh_CN", "zho_Hans", "cmn"):
        assert scored("--target-lang", language) == ("zh", pytest.approx(by_hand, abs=1e-4))
    assert scored() == ("13a", 0.0)
    assert scored("--target-lang", "zh", "--tokenize", "char")[0] == "char"


@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_help_needs_neither_torch_nor_fairseq(command):
    script = (
        "import sys\n"
        "from fairseq_sharing.commands import main\n"
        "try:\n"
        f"    main(['{command}', '--help'])\n"
        "finally:\n"
        "    heavy = {'torch', 'fairseq', 'matplotlib', 'sacrebleu'} & set(sys.modules)\n"
        "    assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: fairseq-sharing")
