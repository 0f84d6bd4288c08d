"""Prepare, train and evaluate two tiny models through the real commands."""

import hashlib
import json
import random
import shutil
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import pytest
from fairseq_processes import fork_trainings, generate_in_fork
from rich.console import Console

from fairseq_sharing.commands import main
from fairseq_sharing.decoding.model_files import find_model
from fairseq_sharing.evaluation import generation

# Two translations start processes that import torch: seconds on two idle cores, minutes on a busy machine.
pytestmark = pytest.mark.timeout(1200)

WORDS = {"the": "der", "dog": "Hund", "man": "Mann", "sees": "sieht", "hears": "hört", "old": "alte", "a": "ein"}
# A language pair that no configuration of this project uses.
SOURCE, TARGET = "fr", "en"
CONFIG = """\
run: {run}
dataset: tiny
train:
  task: translation
  arch: transformer_sharing_tiny
  sharing: {sharing}
  encoder_layers: 2
  decoder_layers: 2
  encoder_embed_dim: 16
  decoder_embed_dim: 16
  encoder_ffn_embed_dim: 16
  decoder_ffn_embed_dim: 16
  encoder_attention_heads: 2
  decoder_attention_heads: 2
  criterion: label_smoothed_cross_entropy
  optimizer: adam
  lr: 0.01
  max_tokens: 400
  max_epoch: 3
  log_interval: 2
  cpu: true
evaluate:
  average_last: 2
  beam: 2
  baseline: vanilla
"""


def _texts(folder, name, lines, seed):
    rng = random.Random(seed)
    sentences = [rng.choices(list(WORDS), k=rng.randint(2, 6)) for _ in range(lines)]
    for lang, text in (
        (SOURCE, [" ".join(sentence) for sentence in sentences]),
        (TARGET, [" ".join(WORDS[word] for word in sentence) for sentence in sentences]),
    ):
        # Five sentences are less than the multiple of eight to which fairseq would cut a batch.
        (folder / f"{name}.{lang}").write_text("\n".join(text) + "\n", encoding="utf-8")
    return str(folder / name)


@pytest.fixture(scope="module")
def place(tmp_path_factory, commands):
    folder = tmp_path_factory.mktemp("evaluate")
    texts = [_texts(folder, name, lines, seed) for seed, (name, lines) in enumerate((("train", 200), ("valid", 20)))]
    tests = [f"{name}={_texts(folder, name, lines, lines)}" for name, lines in (("five", 5), ("more", 21))]
    data = str(folder / "data")
    words = ["--source-lang", SOURCE, "--target-lang", TARGET, "--subword", "none", "--workers", "1", "--out", data]
    words += ["--train", texts[0], "--valid", texts[1], "--test", tests[0], "--test", tests[1]]
    assert main(["prepare", "files", *words]) == 0
    for run, sharing in (("vanilla", "none"), ("universal", "universal")):
        config = folder / f"{run}.yaml"
        config.write_text(CONFIG.format(run=run, sharing=sharing), encoding="utf-8")
        words = ["train", config, "--data", data, "--out", folder / "runs" / f"{run}-seed1"]
        commands.run("fairseq_sharing", *words, before=fork_trainings)
    return folder


@pytest.fixture
def translations_in_forks(commands, monkeypatch):
    """Return a function after whose call translations run in forks, where everything is imported already."""
    forking = SimpleNamespace(Popen=partial(generate_in_fork, commands), PIPE=None)
    return lambda: monkeypatch.setattr(generation, "subprocess", forking)


def _evaluate(place, run, *flags):
    path = place / "runs" / f"{run}-seed1"
    assert main(["evaluate", str(path), "--out", str(place / "results"), *flags]) == 0
    return json.loads((path / "result.json").read_text(encoding="utf-8"))


def test_runs_are_evaluated_compared_and_reported(place, capsys, translations_in_forks):
    early = _evaluate(place, "universal")
    assert early["scores"]["five"]["p_value"] is None
    assert "has not been evaluated; evaluate it" in capsys.readouterr().err
    translations_in_forks()
    vanilla, universal = _evaluate(place, "vanilla"), _evaluate(place, "universal")

    assert {name: score["segments"] for name, score in vanilla["scores"].items()} == {"five": 5, "more": 21}
    assert vanilla["scores"]["five"]["p_value"] is None
    assert 0 < universal["scores"]["more"]["p_value"] <= 1
    assert universal["scores"]["more"]["baseline"] == "vanilla-seed1"
    assert universal["layer_map"] == {"encoder": [0, 0], "decoder": [0, 0]}
    assert universal["unique_layers"] == {"encoder": 1, "decoder": 1}
    assert universal["parameters"]["effective"] == vanilla["parameters"]["unique"]
    assert universal["parameters"]["unique"] < vanilla["parameters"]["unique"]
    command = universal["command"]
    assert command[command.index("--source-lang") :][:4] == ["--source-lang", SOURCE, "--target-lang", TARGET]
    assert universal["checkpoint"] == {"averaged": ["checkpoint2.pt", "checkpoint3.pt"]}
    assert universal["epochs"] == 3
    assert universal["valid"]["epoch"] == [1, 2, 3]
    assert universal["updates"] == universal["valid"]["updates"][-1]
    assert universal["tokens_per_second"] > 0
    assert str(place) not in json.dumps(universal), "a published result must not contain local directories"

    files = [place / f"runs/{run}-seed1/evaluate/more.hypothesis" for run in ("universal", "vanilla")]
    assert files[0].read_text(encoding="utf-8").count("\n") == 21
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    more = universal["scores"]["more"]
    assert [more["hypothesis_sha256"], more["baseline_sha256"]] == digests
    assert vanilla["scores"]["more"]["hypothesis_sha256"] == digests[1]
    assert vanilla["scores"]["more"]["baseline_sha256"] is None
    copied = (place / "results/universal-seed1.json").read_text(encoding="utf-8")
    assert json.loads(copied) == universal

    assert main(["report", str(place / "results"), "--json"]) == 0
    table = json.loads(capsys.readouterr().out.split("\n{", 1)[-1].join(["{", ""]))["table"]
    assert [row["Model"] for row in table] == ["Vanilla", "Universal"]
    (place / "results/vanilla-seed1.json").unlink()
    capsys.readouterr()
    assert main(["report", str(place / "results")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        f"against vanilla-seed1, which has no result in this folder; evaluate vanilla-seed1 with --out {place}/results"
    )


def test_a_finished_step_is_skipped_and_a_changed_setting_redone(place, capsys, translations_in_forks):
    translations_in_forks()
    first = _evaluate(place, "vanilla")
    capsys.readouterr()
    outputs = [
        place / "runs/vanilla-seed1" / name
        for name in ("evaluate/more.generate.txt", "checkpoints/checkpoint_average.pt")
    ]
    times = [file.stat().st_mtime_ns for file in outputs]
    assert _evaluate(place, "vanilla") == first
    assert "fairseq-generate" not in capsys.readouterr().err
    assert [file.stat().st_mtime_ns for file in outputs] == times

    by_characters = _evaluate(place, "vanilla", "--tokenize", "char")
    assert "fairseq-generate" not in capsys.readouterr().err, "only the scoring differs"
    assert "|tok:char|" in by_characters["scores"]["more"]["signature"]["bleu"]
    assert "|tok:13a|" in first["scores"]["more"]["signature"]["bleu"]

    again = _evaluate(place, "vanilla", "--beam", "3", "--average-last", "5")
    error = capsys.readouterr().err
    assert "averaging 3 checkpoints instead of 5" in error
    assert error.count("--beam 3") == 2
    assert error.count("checkpoint_average_last5.pt") == 2
    assert again["generation"]["beam"] == 3
    assert len(again["checkpoint"]["averaged"]) == 3
    assert outputs[0].stat().st_mtime_ns > times[0]
    assert outputs[1].stat().st_mtime_ns == times[1], "translate uses the configured average"
    assert find_model(str(place / "runs/vanilla-seed1"), None, Console(stderr=True)).checkpoints == (outputs[1],)

    outputs[0].write_text("by another process")
    assert _evaluate(place, "vanilla") == first
    assert "fairseq-generate" in capsys.readouterr().err


def test_a_run_is_evaluated_by_one_process_at_a_time(place, capsys, monkeypatch, commands):
    errors = []

    @contextmanager
    def translate_while_others_evaluate(command, **options):
        assert main(["evaluate", str(place / "runs/vanilla-seed1"), "--beam", "1"]) == 2
        errors.append(capsys.readouterr().err.splitlines()[-1])
        with generate_in_fork(commands, command, **options) as process:
            yield process

    monkeypatch.setattr(generation, "subprocess", SimpleNamespace(Popen=translate_while_others_evaluate, PIPE=None))
    result = _evaluate(place, "vanilla", "--beam", "4")
    assert result["generation"]["beam"] == 4
    message = f"{place}/runs/vanilla-seed1: is being evaluated by another process; try again when it has ended"
    assert errors == [f"fairseq-sharing evaluate: error: {message}"] * 2
    assert not list((place / "runs/vanilla-seed1").rglob("*.tmp"))


def test_lower_cased_data_are_scored_on_tokens_and_without_case(place, tmp_path, translations_in_forks):
    translations_in_forks()
    data = shutil.copytree(place / "data", tmp_path / "data")
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["tokenizer"]["lowercase"] = True
    (data / "manifest.json").write_text(json.dumps(manifest))
    scores = _evaluate(place, "vanilla", "--data", str(data), "--out", str(tmp_path / "results"))["scores"]
    assert all("case:lc" in scores[test]["signature"]["bleu"] for test in ("five", "more"))
    assert all(0 <= scores[test]["tokenized_bleu"] <= 100 for test in ("five", "more"))
    assert "tokenized_bleu" not in _evaluate(place, "vanilla")["scores"]["five"]


def test_a_run_that_stopped_in_its_first_epoch_translates_lines_as_long_as_its_model_allows(
    tmp_path, commands, capsys, translations_in_forks
):
    translations_in_forks()
    texts = [_texts(tmp_path, name, 60, seed) for seed, name in enumerate(("train", "valid", "long"))]
    for lang in (SOURCE, TARGET):
        with open(f"{texts[2]}.{lang}", "a") as file:
            file.write("the " * 1100 + "\n")
    words = ["--source-lang", SOURCE, "--target-lang", TARGET, "--subword", "none", "--workers", "1"]
    words += ["--train", texts[0], "--valid", texts[1], "--test", f"long={texts[2]}", "--out", str(tmp_path / "data")]
    assert main(["prepare", "files", *words]) == 0
    (tmp_path / "a.yaml").write_text(CONFIG.format(run="a", sharing="universal"))
    long = ["train.max_source_positions=1200", "train.max_target_positions=1200"]
    for run, overrides in (("long", long), ("short", [])):
        words = ["train", tmp_path / "a.yaml", "--data", tmp_path / "data", "--out", tmp_path / run]
        small = ["train.max_update=1", "train.max_tokens=100", "evaluate.max_len_b=5"]
        commands.run("fairseq_sharing", *words, *small, *overrides, before=fork_trainings)
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "long"), "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (result["epochs"], result["checkpoint"]) == (1, {"averaged": ["checkpoint_last.pt"]})
    assert result["scores"]["long"]["segments"] == 61
    assert result["device"]["threads"] == 1
    assert "checkpoint_last.pt: there is no epoch checkpoint" in err
    with pytest.raises(AssertionError, match="Size of sample #60 is invalid"):  # as fairseq-generate in a fork ends
        main(["evaluate", str(tmp_path / "short")])


def test_failures_are_reported_in_one_line(place, tmp_path, capsys):
    run = place / "runs" / "universal-seed1"
    assert main(["evaluate", str(run), "--data", str(tmp_path)]) == 2
    assert "manifest.json: no such file" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--baseline", str(tmp_path)]) == 2
    assert "no five.hypothesis; evaluate the baseline first" in capsys.readouterr().err.split("\n")[-2]
    assert main(["evaluate", str(run), "--tokenize", "moses"]) == 2
    assert capsys.readouterr().err.startswith(
        "fairseq-sharing evaluate: error: tokenize: 'moses'; allowed: 13a, char, "
    )
