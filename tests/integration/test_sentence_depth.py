"""A depth per sentence through the real commands: train, autodepth, evaluate, translate."""

from __future__ import annotations

import json
import random
from functools import partial
from types import SimpleNamespace

import pytest
from command_errors import failed
from fairseq_processes import fork_trainings, generate_in_fork

from fairseq_sharing.commands import main
from fairseq_sharing.evaluation import generation
from fairseq_sharing.evaluation.generation import read_generated
from fairseq_sharing.files import sha256
from fairseq_sharing.sentence_depth.file import read_classifier

pytestmark = pytest.mark.timeout(1200)  # two trainings and translations on a busy machine

WORDS = {"the": "der", "dog": "Hund", "man": "Mann", "sees": "sieht", "hears": "hört", "old": "alte", "a": "ein"}
CONFIG = """\
run: depths
dataset: tiny
train:
  arch: transformer_sharing_tiny
  sharing: universal
  encoder_layers: 2
  decoder_layers: 2
  depths: [1, 2]
  encoder_embed_dim: 16
  decoder_embed_dim: 16
  encoder_ffn_embed_dim: 16
  decoder_ffn_embed_dim: 16
  criterion: label_smoothed_cross_entropy
  optimizer: adam
  lr: 0.01
  max_tokens: 400
  max_epoch: 3
  cpu: true
evaluate:
  average_last: 2
  beam: 2
"""


def _texts(folder, name, lines):
    rng = random.Random(lines)
    sentences = [rng.choices(list(WORDS), k=rng.randint(1, 8)) for _ in range(lines)]
    (folder / f"{name}.en").write_text("".join(" ".join(words) + "\n" for words in sentences), encoding="utf-8")
    text = "".join(" ".join(WORDS[word] for word in words) + "\n" for words in sentences)
    (folder / f"{name}.de").write_text(text, encoding="utf-8")
    return str(folder / name)


@pytest.fixture(scope="module")
def run(tmp_path_factory, commands):
    """A run with two depths, and a classifier that chooses both."""
    folder = tmp_path_factory.mktemp("run")
    words = ["--source-lang", "en", "--target-lang", "de", "--subword", "none", "--workers", "1"]
    words += ["--train", _texts(folder, "train", 200), "--valid", _texts(folder, "valid", 60)]
    words += ["--test", f"news={_texts(folder, 'news', 29)}", "--out", str(folder / "data")]
    assert main(["prepare", "files", *words]) == 0
    (folder / "depths.yaml").write_text(CONFIG, encoding="utf-8")
    words = ["train", folder / "depths.yaml", "--data", folder / "data", "--out", folder / "run"]
    commands.run("fairseq_sharing", *words, before=fork_trainings)
    return folder / "run"


def test_commands(run, capfd, commands, monkeypatch):
    average = run / "checkpoints/checkpoint_average.pt"
    assert main(["evaluate", str(run), "--depth", "auto"]) == 2
    assert capfd.readouterr().err.splitlines()[-1] == (
        f"fairseq-sharing evaluate: error: --depth auto: {average} has no depth classifier; "
        f"train one with: fairseq-sharing autodepth {average} --penalty X"
    )
    before = sha256(average)
    # The penalty is chosen so that both depths are the best for some sentences.
    for penalty in ("0.001", "0.01", "0.05", "0.1", "0.3", "1"):
        assert main(["autodepth", str(run), "--penalty", penalty]) == 0
        printed = capfd.readouterr().out
        assert (
            f"{average.with_name('checkpoint_average.depth-classifier.json')}: translate with --depth auto" in printed
        )
        assert "6 held-out sentences of 60" in printed
        choices = _translate(run, run.parent / "valid.en", capfd)[1]
        if choices.count("d") == 2:
            break
    assert choices.count("d") == 2, "both depths are chosen"
    assert sha256(average) == before

    monkeypatch.setattr(generation, "subprocess", SimpleNamespace(Popen=partial(generate_in_fork, commands), PIPE=None))
    results = run.parent / "results"
    for depth in (["--depth", "auto"], ["--depth", "1"], []):
        assert main(["evaluate", str(run), *depth, "--out", str(results)]) == 0
        printed = capfd.readouterr().out
        assert ("news: sentences per depth: d1 " in printed) == (depth == ["--depth", "auto"])
    result = json.loads((run / "result-auto.json").read_text())
    assert json.loads((results / "depths-auto-seed1.json").read_text()) == result
    assert (result["run"], result["layers"]) == ("depths-auto", {"encoder": 2, "decoder": 2})
    assert "depth" not in result
    assert result["depth_classifier"] == read_classifier(average).training
    score = result["scores"]["news"]
    assert set(score["depths"]) == {"d1", "d2"}
    assert sum(score["depths"].values()) == score["segments"] == 29
    classifier = read_classifier(average)
    lengths = [len(line.split()) + 1 for line in (run.parent / "news.en").read_text().splitlines()]
    assert score["macs_per_sentence_all_layers"] == round(classifier.costs.at_one_depth(1, lengths))

    found = {name: read_generated(run / f"evaluate/news{name}.generate.txt", 29) for name in ("", "-d1", "-auto")}
    translated, counts = _translate(run, run.parent / "news.en", capfd)
    assert counts == ", ".join(f"{name} {count}" for name, count in score["depths"].items() if count)
    assert translated == found["-auto"]
    assert all(auto in pair for auto, *pair in zip(found["-auto"], found["-d1"], found[""], strict=True))
    written = run / "evaluate/news-auto.generate.txt"
    at = written.stat().st_mtime_ns
    assert main(["evaluate", str(run), "--depth", "auto"]) == 0
    assert written.stat().st_mtime_ns == at, "nothing is translated again"
    assert sorted(file.name for file in written.parent.glob("news*")) == [
        f"news{name}.generate.txt" for name in ("-auto", "-d1", "")
    ]
    assert main(["autodepth", str(run), "--penalty", "1000"]) == 0
    assert main(["evaluate", str(run), "--depth", "auto"]) == 0
    assert json.loads((run / "result-auto.json").read_text())["scores"]["news"]["depths"] == {"d1": 29, "d2": 0}
    assert main(["report", str(results), "--json"]) == 0


def _translate(run, file, capfd) -> tuple[list[str], str]:
    """Translate a file; return the lines and the reported depths."""
    capfd.readouterr()
    words = ["translate", str(run), str(file), "--depth", "auto", "--beam", "2", "--threads", "1"]
    assert main([*words, "--prepared"]) == 0
    output = capfd.readouterr()
    return output.out.splitlines(), output.err.splitlines()[-1].removeprefix("sentences per depth: ")


def test_refusals_are_one_line(run, tmp_path, capfd):
    checkpoint = run / "checkpoints/checkpoint_last.pt"
    cases = {
        ("export", run, "--to", "ctranslate2", "--output", tmp_path / "x", "--depth", "auto"): (
            "--depth auto: the depth of each sentence is chosen by translate and evaluate; "
            "allowed here: a number of layers"
        ),
        ("translate", run, "--depth", "auto", "--encoder-depth", "1"): (
            "--encoder-depth: not allowed with --depth auto, which chooses among all depths"
        ),
        ("evaluate", run, "--depth", "auto", "--force-depth"): (
            "--force-depth: not allowed with --depth auto, which chooses among all depths"
        ),
        ("translate", f"{checkpoint}:{checkpoint}", "--depth", "auto"): (
            f"{checkpoint}:{checkpoint}: --depth auto: is an ensemble; allowed: one run directory or checkpoint"
        ),
        ("autodepth", f"{checkpoint}:{checkpoint}", "--penalty", "1"): (
            f"{checkpoint}:{checkpoint}: is an ensemble; allowed: a run directory or a checkpoint"
        ),
        ("autodepth", run, "--penalty", "-1"): (
            "argument --penalty: must be a number from 0 to 1,000,000,000, got '-1'"
        ),
        ("translate", run, "--depth", "some"): (
            "argument --depth: must be a whole number from 1 to 1,000,000,000, got 'some'"
        ),
    }
    for words, message in cases.items():
        assert failed(capfd, list(words)) == message
