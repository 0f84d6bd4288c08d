"""Perplexity of a run of the language modeling task on every test set, checked by hand."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq_processes import fork_trainings

from fairseq_sharing.commands import main

RECIPE = """\
source_lang: en
splits:
  train: {{en: {{path: {folder}/train}}}}
  valid: {{en: {{path: {folder}/test}}}}
  test: {{en: {{path: {folder}/test}}}}
  other: {{en: {{path: {folder}/other}}}}
cleaning: none
tokenizer: {{name: none}}
subword: {{name: bpe, size: 30}}
"""
CONFIG = """\
run: lm
dataset: words
train:
  task: language_modeling
  arch: transformer_lm_sharing
  sharing: universal
  decoder_layers: 2
  decoder_embed_dim: 16
  decoder_ffn_embed_dim: 16
  decoder_attention_heads: 2
  share_decoder_input_output_embed: true
  sample_break_mode: none
  tokens_per_sample: 32
  optimizer: adam
  lr: 0.01
  batch_size: 8
  max_epoch: 2
  log_interval: 5
  cpu: true
evaluate:
  average_last: 1
"""
SYLLABLES = ("ba", "de", "fi", "go", "hu")


@pytest.fixture(scope="module")
def run(tmp_path_factory, commands):
    folder = tmp_path_factory.mktemp("lm")
    draw = random.Random(2)
    for name, lines in (("train", 200), ("test", 31), ("other", 9)):
        text = []
        for _ in range(lines):
            words = ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 3))) for _ in range(draw.randint(2, 9))]
            text.append(" ".join(words))
        (folder / name).write_text("\n".join(text) + "\n", encoding="utf-8")
    (folder / "words.yaml").write_text(RECIPE.format(folder=folder), encoding="utf-8")
    (folder / "lm.yaml").write_text(CONFIG, encoding="utf-8")
    assert main(["prepare", str(folder / "words.yaml"), "--out", str(folder / "data"), "--workers", "1"]) == 0
    path = folder / "runs" / "lm-seed1"
    words = ["train", folder / "lm.yaml", "--data", folder / "data", "--out", path]
    commands.run("fairseq_sharing", *words, before=fork_trainings)
    return path


def _evaluate(run, *flags):
    assert main(["evaluate", str(run), *flags]) == 0
    return json.loads((run / "result.json").read_text(encoding="utf-8"))


def _by_hand(run, name, length, context=0):
    """Sum the log-probabilities of a text, read in blocks of ``length`` new tokens after ``context`` old ones."""
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(run / "checkpoints/checkpoint_average.pt")])
    model.eval()
    end = task.dictionary.eos()
    pieces = (run.parents[1] / "data" / "bpe" / f"{name}.en").read_text(encoding="utf-8").splitlines()
    tokens = [index for line in pieces for index in [*map(task.dictionary.index, line.split()), end]]
    total = 0.0
    for start in range(0, len(tokens), length):
        first = max(0, start - context)
        target = torch.tensor(tokens[first : start + length])
        source = torch.cat([torch.tensor([tokens[first - 1] if first else end]), target[:-1]])
        with torch.no_grad():
            output = torch.log_softmax(model(source[None])[0][0], dim=-1)
        chosen = output.gather(1, target[:, None])[:, 0]
        total += float(chosen[start - first :].double().sum())
    return -total, len(tokens)


def test_perplexity_per_subword_and_word_equals_that_computed_by_hand(run, capsys):
    result = _evaluate(run, "--out", str(run.parent / "results"))
    assert list(result["scores"]) == ["test", "other"]
    for name, score in result["scores"].items():
        text = (run.parents[1] / name).read_text(encoding="utf-8")
        loss, tokens = _by_hand(run, name, 32)
        words = len(text.split()) + text.count("\n")
        assert (score["segments"], score["tokens"], score["words"]) == (text.count("\n"), tokens, words)
        assert tokens > words, "some words are split"
        assert score["loss"] == pytest.approx(loss / tokens, rel=1e-4)
        assert score["perplexity"] == pytest.approx(math.exp(loss / tokens), rel=1e-4)
        assert score["word_perplexity"] == pytest.approx(math.exp(loss / words), rel=1e-4)
    assert result["generation"] == {"tokens_per_sample": None, "context_window": 0}
    assert result["sharing"] == {"decoder": "universal"}
    assert result["layer_map"] == {"decoder": [0, 0]}
    assert not (run / "hypotheses").exists()
    copied = json.loads((run.parent / "results" / "lm-seed1.json").read_text(encoding="utf-8"))
    assert copied == result
    table = capsys.readouterr().out
    assert "perplexity per subword" in table
    assert f"{result['scores']['other']['word_perplexity']:.2f}" in table


def test_blocks_and_context_are_those_of_the_settings(run):
    first = _evaluate(run)["scores"]["test"]
    shorter = _evaluate(run, "--tokens-per-sample", "8")["scores"]["test"]
    loss, tokens = _by_hand(run, "test", 8)
    assert shorter["tokens"] == tokens == first["tokens"]
    assert shorter["loss"] == pytest.approx(loss / tokens, rel=1e-4)
    window = _evaluate(run, "--tokens-per-sample", "24", "--context-window", "8")["scores"]["test"]
    assert window["tokens"] == tokens
    assert window["loss"] == pytest.approx(_by_hand(run, "test", 16, 8)[0] / tokens, rel=1e-4)
    assert len({score["loss"] for score in (first, shorter, window)}) == 3
    assert _evaluate(run)["scores"]["test"] == first, "scores of other settings are not reused"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--tokens-per-sample", "33"],
            "--tokens-per-sample 33: the model has 32 positions; allowed: 1 to 32 (it was trained with 32)",
        ),
        (["--context-window", "32"], "--context-window 32: allowed: less than the 32 tokens of a block"),
        (["--beam", "4"], "evaluate.beam: 4; allowed only for translation models"),
        (["--tokens-per-sample", "0"], "evaluate.tokens_per_sample must be an integer >= 1, got 0"),
    ],
)
def test_settings_that_the_model_cannot_have_are_refused(run, flags, message, capsys):
    assert main(["evaluate", str(run), *flags]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"fairseq-sharing evaluate: error: {message}"
