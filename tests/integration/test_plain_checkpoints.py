"""Checkpoints of different tasks, criterions and meters can be resumed, averaged and used for decoding."""

from __future__ import annotations

import os
import pickletools
import zipfile
from pathlib import Path

import pytest
import torch
from fairseq_processes import PLUGIN
from tiny_training import CYCLE_REV, LAYERS, SUBSETS

from fairseq_sharing.checkpoints.files import load_checkpoint

BLEU = ["--eval-bleu", "--eval-bleu-args", '{"beam": 1, "max_len_b": 5}', "--best-checkpoint-metric", "bleu"]
BLEU += ["--maximize-best-checkpoint-metric"]
DETOKENIZED = [*BLEU, "--eval-bleu-detok", "moses", "--eval-bleu-remove-bpe", "--eval-bleu-print-samples"]
VANILLA = ["--arch", "transformer", *LAYERS]
NO_SHARING = ["--arch", "transformer_sharing", *LAYERS]
MULTILINGUAL = ["--task", "translation_multi_simple_epoch", "--lang-pairs", "en-de", "--langs", "en,de"]
MULTILINGUAL += ["--sampling-method", "temperature", "--sampling-temperature", "1.5", "--decoder-langtok"]
# Name -> flags of the model, other flags.
TRAININGS = {
    "BLEU, detokenized": (CYCLE_REV, [*DETOKENIZED, "--keep-best-checkpoints", "2"]),
    "BLEU, tokenized": (CYCLE_REV, [*BLEU, "--eval-tokenized-bleu", "--lr-scheduler", "reduce_lr_on_plateau"]),
    "BLEU, fast": (CYCLE_REV, [*BLEU, "--fast", "--criterion", "fused_label_smoothed_cross_entropy"]),
    "BLEU, fairseq's model, EMA": (VANILLA, [*BLEU, "--store-ema", "--ema-fp32"]),
    "EMA": (CYCLE_REV, ["--store-ema", "--ema-fp32", "--ema-decay", "0.9", "--fast"]),
    "accuracy": (CYCLE_REV, ["--report-accuracy", "--lr-scheduler", "inverse_sqrt"]),
    "dynamic": (NO_SHARING, ["--task", "translation_sharing", "--sharing-schedule", "dynamic", *BLEU]),
    "ACT": (CYCLE_REV, ["--act", "both", "--criterion", "label_smoothed_cross_entropy_with_ponder", *BLEU]),
    "MoEUT": (["--arch", "transformer_moeut", *LAYERS], ["--criterion", "moe_cross_entropy", *BLEU]),
    "several languages": (CYCLE_REV, MULTILINGUAL),
}
DECODED = {
    "several languages": ["--task", "translation_multi_simple_epoch", "--lang-pairs", "en-de", "--langs", "en,de"],
}
SMALL = ["--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "24", "--encoder-attention-heads", "2"]
LANGUAGE_MODELS = {
    "language_modeling": ["--arch", "transformer_lm_sharing", "--decoder-layers", "4", "--criterion", "adaptive_loss"],
    "masked_lm": ["--arch", "roberta_sharing", "--encoder-layers", "4", "--criterion", "masked_lm", *SMALL],
}
LANGUAGE_MODELS["language_modeling"] += ["--adaptive-softmax-cutoff", "10,20", "--decoder-embed-dim", "16"]
LANGUAGE_MODELS["language_modeling"] += ["--decoder-ffn-embed-dim", "24", "--decoder-attention-heads", "2"]


def assert_plain(path: Path) -> None:
    """Check that the file names only torch's functions and two classes, and therefore contains no other code."""
    with zipfile.ZipFile(path) as file:
        (pickled,) = (name for name in file.namelist() if name.endswith("/data.pkl"))
        names = {str(word) for code, word, _ in pickletools.genops(file.read(pickled)) if code.name == "GLOBAL"}
    others = {name for name in names if not name.startswith("torch")}
    assert others <= {"argparse Namespace", "collections OrderedDict"}


def updates(path: Path) -> int:
    return load_checkpoint(path)["optimizer_history"][-1]["num_updates"]


@pytest.mark.parametrize("name", TRAININGS)
def test_training_resumes_and_translates(name, tmp_path, train, commands, translate):
    model, flags = TRAININGS[name]
    last, average = tmp_path / "checkpoint_last.pt", tmp_path / "average.pt"
    train(tmp_path, *flags, "--max-update", "3", model=model)
    assert updates(last) == 3
    done = train(tmp_path, *flags, "--max-update", "5", model=model)
    assert f"Loaded checkpoint {last} (epoch 1 @ 3 updates)" in done.stdout
    assert updates(last) == 5
    for path in tmp_path.glob("*.pt"):
        assert_plain(path)
    commands.run("fairseq_sharing", "average", last, tmp_path / "checkpoint_best.pt", "--output", average)
    assert_plain(average)
    translations = translate(average, *DECODED.get(name, []))
    assert sorted(translations["H"]) == list(range(SUBSETS["test1"]))


@pytest.mark.parametrize("task", LANGUAGE_MODELS)
def test_language_model_resumes(task, tmp_path, corpus, commands):
    data, last = tmp_path / "bin", tmp_path / "checkpoint_last.pt"
    prefixes = ["--trainpref", corpus / "test.en", "--validpref", corpus / "valid.en"]
    commands.run("fairseq_cli.preprocess", "--only-source", *prefixes, "--destdir", data, "--workers", 1)
    words = ["fairseq_cli.train", data, "--user-dir", PLUGIN, "--cpu", "--task", task, *LANGUAGE_MODELS[task]]
    words += ["--sharing", "cycle_rev", "--unique-layers", "2", "--tokens-per-sample", "32", "--batch-size", "8"]
    words += ["--optimizer", "adam", "--ddp-backend", "legacy_ddp", "--save-dir", tmp_path, "--max-update"]
    commands.run(*words, "3")
    done = commands.run(*words, "5")
    assert f"Loaded checkpoint {last} (epoch 1 @ 3 updates)" in done.stdout
    assert updates(last) == 5
    assert_plain(last)
    commands.run("fairseq_sharing", "average", last, "--output", tmp_path / "average.pt")
    assert_plain(tmp_path / "average.pt")


def test_checkpoint_with_arrays_that_fairseq_alone_wrote(tmp_path, train, commands, translate):
    last = tmp_path / "checkpoint_last.pt"
    train(tmp_path, *DETOKENIZED, "--max-update", "3", model=VANILLA, user_dir=None)
    with pytest.raises(AssertionError, match="numpy"):
        assert_plain(last)
    assert sorted(translate(last)["H"]) == list(range(SUBSETS["test1"]))
    commands.run("fairseq_sharing", "average", last, "--output", tmp_path / "average.pt")
    assert_plain(tmp_path / "average.pt")
    train(tmp_path / "tuned", "--finetune-from-model", last, "--max-update", "1", model=NO_SHARING)
    done = train(tmp_path, *DETOKENIZED, "--max-update", "5", model=VANILLA)
    assert f"Loaded checkpoint {last} (epoch 1 @ 3 updates)" in done.stdout
    assert updates(last) == 5
    assert_plain(last)


def test_file_that_could_execute_code_is_refused_in_one_line(tmp_path, train, commands, data):
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    last = tmp_path / "checkpoint_last.pt"
    torch.save({"model": {}, "weight": Harmful()}, last)
    reason = "not read, because it could execute code (it contains posix.mkdir); allowed: tensors and plain values"
    generate = ["fairseq_cli.generate", data, "--user-dir", PLUGIN, "--path", last, "--cpu"]
    done = commands.run(*generate, status=None)
    assert done.stderr.splitlines()[-1] == f"fairseq-generate: error: {last}: {reason}"
    assert "weights_only" not in done.stderr
    done = train(tmp_path, "--finetune-from-model", last, "--max-update", "1", status=None)
    refused = f"fairseq-train: error: {last}: {reason}; {tmp_path} has no other checkpoint to resume from"
    assert done.stderr.splitlines()[-1] == refused
    done = train(tmp_path, "--max-update", "1", status=None)
    assert done.stderr.splitlines()[-1] == (
        f"fairseq-train: error: {last}: {reason}; {tmp_path} has no other checkpoint to resume from"
    )
    assert not (tmp_path / "harm").exists()
