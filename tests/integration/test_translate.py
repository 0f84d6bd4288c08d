"""Compare the commands export and translate with fairseq-generate on a trained model."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from fairseq_processes import PLUGIN

LENPEN, NBEST, MAX_LEN = 0.7, 2, 20


@pytest.fixture(scope="module")
def model(train, tmp_path_factory) -> Path:
    """Train a checkpoint long enough for translations of different lengths."""
    folder = tmp_path_factory.mktemp("translates")
    train(folder, "--max-epoch", "12", "--no-epoch-checkpoints", "--disable-validation")
    return folder / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def wanted(commands, data, model) -> list[list[tuple[str, float]]]:
    """Return the hypotheses of fairseq-generate for each sentence, with scores (natural logarithm)."""
    done = commands.run(
        *("fairseq_cli.generate", data, "--path", model, "--gen-subset", "test"),
        *("--user-dir", PLUGIN, "--cpu", "--beam", "4", "--nbest", NBEST, "--lenpen", LENPEN, "--max-tokens", "500"),
        *("--max-len-b", MAX_LEN),
    )
    found: dict[int, list[tuple[str, float]]] = {}
    for line in done.stdout.split("\n"):
        if line.startswith("H-"):
            number, score, text = line[2:].split("\t")
            found.setdefault(int(number), []).append((text, float(score) * math.log(2)))
    return [found[number] for number in range(len(found))]


@pytest.mark.parametrize("engine", ["fairseq", "ctranslate2"])
def test_both_engines_find_what_fairseq_generate_finds(commands, model, corpus, wanted, tmp_path, engine):
    if engine == "ctranslate2":
        done = commands.run("fairseq_sharing", "export", model, "--to", "ctranslate2", "--output", tmp_path / "model")
        assert "tensors stored for the" in done.stdout
        model = tmp_path / "model"
    # Small batches, and more than one buffer.
    words = ["--prepared", "--beam", 4, "--nbest", NBEST, "--lenpen", LENPEN, "--max-tokens", 200, "--buffer", 200]
    words += ["--max-len-b", MAX_LEN]
    commands.run("fairseq_sharing", "translate", model, corpus / "test.en", "--out", tmp_path / "out", *words)
    rows = [line.split("\t") for line in (tmp_path / "out").read_text().splitlines()]
    found = [[(text, float(score)) for number, score, text in rows if int(number) == n + 1] for n in range(len(wanted))]
    assert len(wanted) == 461
    assert [len(hypotheses) for hypotheses in found] == [NBEST] * 461
    # The engines differ in hypotheses that are cut off.
    whole = [n for n in range(461) if all(text.count(" ") + 1 < MAX_LEN for text, _ in wanted[n])]
    assert len(whole) > 400
    assert len({text.count(" ") for n in whole for text, _ in wanted[n]}) > 3, "lengths differ"
    same = sum(found[n][0][0] == wanted[n][0][0] for n in whole)
    assert same >= (1 if engine == "fairseq" else 0.98) * len(whole)
    # CTranslate2 rules out an empty translation before it normalizes the first word's probabilities, fairseq after:
    # this adds the same to the log-probability of each translation of a sentence.
    for n in whole:
        scores = {text: score for text, score in wanted[n]}
        added = [(score - scores[text]) * (text.count(" ") + 2) ** LENPEN for text, score in found[n] if text in scores]
        assert added == pytest.approx([added[0] if engine == "ctranslate2" else 0.0] * len(added), abs=1e-3)


def test_model_for_several_directions_translates_as_fairseq_generate_does(
    commands, train, translate, data, corpus, tmp_path
):
    several = ["--task", "translation_multi_simple_epoch", "--lang-pairs", "en-de,de-en", "--langs", "en,de"]
    several += ["--decoder-langtok", "--encoder-langtok", "tgt"]
    train(tmp_path, *several, "--max-epoch", "2", "--no-epoch-checkpoints", "--disable-validation")
    model = tmp_path / "checkpoint_last.pt"
    wanted = translate(model, *several, "-s", "en", "-t", "de", subset="test")["H"]
    words = ["--prepared", "--data", data, "--beam", 3, "--max-len-b", 9, "--out", tmp_path / "out"]
    commands.run("fairseq_sharing", "translate", model, corpus / "test.en", *words)
    assert (tmp_path / "out").read_text().splitlines() == [wanted[number][1] for number in range(len(wanted))]

    done = commands.run(
        *("fairseq_sharing", "export", model, "--to", "ctranslate2", "--output", tmp_path / "model"), status=2
    )
    assert "CTranslate2 does not add the languages that translation_multi_simple_epoch adds" in done.stderr


def test_language_model_is_refused_in_one_line(commands, data, tmp_path):
    (tmp_path / "bin").mkdir()
    for file in data.glob("*.en-de.en.*"):
        (tmp_path / "bin" / file.name.replace(".en-de.en", "")).write_bytes(file.read_bytes())
    (tmp_path / "bin" / "dict.txt").write_bytes((data / "dict.en.txt").read_bytes())
    commands.run(
        *("fairseq_cli.train", tmp_path / "bin", "--user-dir", PLUGIN, "--task", "language_modeling", "--cpu"),
        *("--arch", "transformer_lm_sharing", "--decoder-embed-dim", "16", "--decoder-layers", "2", "--sharing"),
        *("universal", "--optimizer", "adam", "--max-tokens", "200", "--tokens-per-sample", "32", "--max-update", "1"),
        *("--save-dir", tmp_path, "--disable-validation"),
    )
    model = tmp_path / "checkpoint_last.pt"
    done = commands.run(
        *("fairseq_sharing", "export", model, "--to", "ctranslate2", "--output", tmp_path / "out"), status=2
    )
    errors = [line for line in done.stderr.split("\n") if line]
    assert "was trained for the task language_modeling; allowed: translation models" in errors[-1]
    assert "Traceback" not in done.stderr
