"""The commands of docs/from_fairseq.md, on checkpoints of plain fairseq-train and a data-bin of fairseq-preprocess."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fairseq_processes import PLUGIN, ROOT, generate_in_fork
from sacrebleu import corpus_bleu

from fairseq_sharing.commands import main
from fairseq_sharing.evaluation import generation
from fairseq_sharing.preparation import toy

PAGE = (ROOT / "docs" / "from_fairseq.md").read_text(encoding="utf-8")
SMALL = [
    *("--cpu", "--max-epoch", "3", "--warmup-updates", "10", "--lr", "0.01", "--max-tokens", "1000"),
    *("--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "16", "--encoder-attention-heads", "2"),
    *("--decoder-embed-dim", "16", "--decoder-ffn-embed-dim", "16", "--decoder-attention-heads", "2"),
]


def _commands(program):
    blocks = "\n".join(re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in blocks.splitlines() if line.startswith(program)]


@pytest.fixture(scope="module")
def place(tmp_path_factory, commands) -> Path:
    """A directory with data-bin/news, raw/test.de and the two trained models of the page."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "raw").mkdir()
    for name, pairs in toy.generate({"train": 300, "valid": 20, "test": 23}).items():
        for lang in ("en", "de"):
            text = [pair[lang] for pair in pairs]
            if name == "test":
                (folder / "raw" / f"test.{lang}").write_text("".join(f"{line}\n" for line in text))
            tokenized = [re.sub(r"([.,?!])", r" \1", line) for line in text]  # like Moses, on these sentences
            (folder / f"{name}.{lang}").write_text("".join(f"{line}\n" for line in tokenized))
    texts = ["--trainpref", folder / "train", "--validpref", folder / "valid", "--testpref", folder / "test"]
    preprocess = ["-s", "en", "-t", "de", *texts, "--destdir", folder / "data-bin/news", "--workers", "1"]
    commands.run("fairseq_cli.preprocess", *preprocess)
    for words in _commands("fairseq-train "):
        words = [str(PLUGIN) if word == "fairseq_sharing" else word for word in words]
        commands.run("fairseq_cli.train", *words, *SMALL, cwd=folder)
    return folder


@pytest.fixture
def user(place, commands, monkeypatch):
    """Make the directory of the user the current one; translations run in forks."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(generation, "subprocess", SimpleNamespace(Popen=partial(generate_in_fork, commands), PIPE=None))
    return place


def test_the_training_command_changes_by_one_line():
    plain, shared = (" ".join(words) for words in _commands("fairseq-train "))
    changed = shared.replace(" --user-dir fairseq_sharing --sharing cycle --unique-layers 3", "")
    assert (
        changed.replace("transformer_sharing_", "transformer_").replace("checkpoints/cycle", "checkpoints/vanilla")
        == plain
    )


def test_commands_of_the_page_evaluate_and_report(user, capsys):
    for words in _commands("fairseq-sharing "):
        assert main(words) == 0
    vanilla, cycle = (
        json.loads((user / f"results/news/{run}-seed1.json").read_text(encoding="utf-8"))
        for run in ("vanilla", "cycle")
    )
    assert (vanilla["arch"], vanilla["seed"], vanilla["dataset"]) == ("transformer_iwslt_de_en", 1, "news")
    assert vanilla["sharing"] == {"encoder": "none", "decoder": "none"}
    assert cycle["layer_map"] == {"encoder": [0, 1, 2, 0, 1, 2], "decoder": [0, 1, 2, 0, 1, 2]}
    assert cycle["parameters"]["unique"] < cycle["parameters"]["effective"] == vanilla["parameters"]["unique"]
    assert vanilla["checkpoint"] == {"averaged": [f"checkpoint{epoch}.pt" for epoch in (1, 2, 3)]}
    assert (vanilla["epochs"], vanilla["tokens_per_second"]) == (3, None)
    score = vanilla["scores"]["newstest"]
    assert score["hypotheses"] == "hypotheses/newstest.en-de.hyp.vanilla-seed1.de.gz"
    hypotheses = gzip.decompress((user / "results/news" / score["hypotheses"]).read_bytes()).decode().splitlines()
    references = (user / "raw/test.de").read_text(encoding="utf-8").splitlines()
    assert len(hypotheses) == 23
    assert not any(" ." in line for line in hypotheses), "detokenized"
    assert any(line.endswith(".") for line in hypotheses)
    assert score["bleu"] == pytest.approx(corpus_bleu(hypotheses, [references]).score, abs=1e-4)
    table = (user / "results/news/table.md").read_text(encoding="utf-8")
    assert "| Vanilla " in table
    assert "| Cycle " in table

    assert main(["score", "results/news", "--reference", "newstest=raw/test.de"]) == 0
    assert capsys.readouterr().out.count("unchanged") == 2


def test_a_seed_of_another_directory_joins_its_row(user, tmp_path):
    directory = tmp_path / "second"
    directory.mkdir()
    for epoch in (2, 3):
        checkpoint = torch.load(user / f"checkpoints/cycle/checkpoint{epoch}.pt", weights_only=False)
        checkpoint["cfg"]["common"]["seed"] = 7
        torch.save(checkpoint, directory / f"checkpoint{epoch}.pt")
    words = [
        "--data-bin",
        "data-bin/news",
        "--test",
        "newstest=test,raw/test.de",
        "--run",
        "cycle",
        "--dataset",
        "mine",
    ]
    assert main(["evaluate", str(directory), *words, "--average-last", "1", "--beam", "2", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "cycle-seed7.json").read_text(encoding="utf-8"))
    assert (result["run"], result["seed"], result["dataset"], result["generation"]["beam"]) == ("cycle", 7, "mine", 2)
    assert result["checkpoint"] == {"averaged": ["checkpoint3.pt"]}
    assert not (directory / "checkpoint_average.pt").exists(), "the average of another number has a name of its own"


def test_prepared_data_replace_the_flags(user, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(user / "data-bin/news", data / "bin")
    shutil.copytree(user / "raw", data / "raw")
    test = {"name": "news", "subset": "test", "segments": 23, "source": "raw/test.en", "reference": "raw/test.de"}
    manifest = {"dataset": "prepared", "source_lang": "en", "target_lang": "de", "files": {}, "tests": [test]}
    manifest |= {"tokenizer": {"name": "moses"}, "subword": {"name": "none"}}
    (data / "manifest.json").write_text(json.dumps(manifest))
    assert main(["evaluate", "checkpoints/vanilla", "--data", str(data), "--average-last", "1"]) == 0
    result = json.loads((user / "checkpoints/vanilla/result.json").read_text(encoding="utf-8"))
    assert (result["run"], result["dataset"], list(result["scores"])) == ("vanilla", "prepared", ["news"])


DATA = ["--data-bin", "data-bin/news"]
TEST = ["--test", "news=test,raw/test.de"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["checkpoints/vanilla"],
            "checkpoints/vanilla: contains checkpoints but no config.yaml of fairseq-sharing train; "
            "give --data-bin and --test, or --data with a prepared data directory",
        ),
        (["checkpoints/vanilla", *DATA, "--data", "x"], "--data-bin: allowed only without --data"),
        (["raw", *DATA], "--data-bin: allowed only with a directory of checkpoints of fairseq-train"),
        (
            ["checkpoints/vanilla", *DATA, "--test", "raw/test.de"],
            "--test raw/test.de: must be NAME=SUBSET,REFERENCE, for example news=test,raw/test.de",
        ),
        (["checkpoints/vanilla", *DATA, *TEST, *TEST], "--test news: given twice; allowed: each name once"),
        (
            ["checkpoints/vanilla", *DATA, "--test", "news=test9,raw/test.de"],
            "--test news=test9,raw/test.de: data-bin/news has no subset test9 for en-de",
        ),
        (["checkpoints/vanilla", *DATA, "--test", "news=test,none"], "none: no such file"),
        (
            ["checkpoints/vanilla", "--data-bin", "raw", *TEST],
            "raw: no file that names its languages; allowed: the output of fairseq-preprocess",
        ),
        (["checkpoints/vanilla", *DATA, *TEST, "--run", "a/b"], "--run: 'a/b'; allowed: letters, digits and . _ -"),
    ],
)
def test_bad_input_ends_in_one_line(user, words, message, capsys):
    assert main(["evaluate", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fairseq-sharing evaluate: error: {message}")


def test_a_reference_of_another_length_is_refused(user, tmp_path, capsys):
    (tmp_path / "short").write_text("ja\n" * 22)
    assert main(["evaluate", "checkpoints/vanilla", *DATA, "--test", f"news=test,{tmp_path / 'short'}"]) == 2
    assert "ids beyond the 22 sentences of the test set (0 to 21): 22" in capsys.readouterr().err
