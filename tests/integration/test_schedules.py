"""Sharing schedules in fairseq's commands and in this project's."""

from __future__ import annotations

import json
import random
import shutil

import pytest
import torch
from fairseq_processes import logged
from tiny_training import LAYERS, assert_same_bits, distributed

from fairseq_sharing.checkpoints.files import load_checkpoint
from fairseq_sharing.checkpoints.summary import describe_checkpoint
from fairseq_sharing.schedules.replay import recorded_changes, recorded_state

SHARED = ("--sharing", "universal", "--unique-layers", "1")
OWN = ("--sharing", "none", "--unique-layers", "4")
TASK = ("--task", "translation_sharing", "--sharing-schedule")
# Dropout, two batches per update and a data loader worker; a checkpoint after every second update.
FLAGS = ("--dropout", "0.2", "--update-freq", "2", "--num-workers", "1", "--save-interval-updates", "2")
FLAGS += ("--max-update", "12", "--disable-validation")
SPLIT = (*TASK, "unshare", "--unshare-when", "correlation-split", "--unshare-interval", "2")
SPLIT += ("--unshare-patience", "2", "--unshare-threshold", "0.9")
DYNAMIC = (*TASK, "dynamic", "--dynamic-interval", "3", "--dynamic-epsilon-decay", "0.7")


@pytest.mark.parametrize(
    ("ranks", "model", "schedule", "stops"),
    [(1, OWN, DYNAMIC, (2, 8)), (2, SHARED, SPLIT, (6,)), (1, (*SHARED, "--fast"), SPLIT, (6,))],
    ids=["dynamic, one rank", "unshare, two ranks", "unshare, fast"],
)
def test_a_run_that_stopped_ends_with_the_same_bits(ranks, model, schedule, stops, train_on_ranks, tmp_path):
    """Stop during the initial freezing, between a decision and its reward, and between two checks."""
    whole = tmp_path / "whole"
    flags = (*model, *schedule, *FLAGS, "--tensorboard-logdir", tmp_path / "curves")
    log = train_on_ranks(whole, ranks, *flags)
    last = whole / "checkpoint_last.pt"
    changes = recorded_changes(load_checkpoint(last))
    assert changes
    told = [entry["map_change"] for entry in logged(log, "map_change")]
    assert told == [change for change in changes if "after" in change["bytes"]]
    assert any((tmp_path / "curves" / "sharing").iterdir()), "nothing in TensorBoard"
    assert {"parameters", "encoder_sets", "decoder_sets"} <= logged(log, "parameters")[-1].keys()
    for update in stops:
        resumed = tmp_path / f"from{update}"
        resumed.mkdir()
        (saved,) = whole.glob(f"checkpoint_*_{update}.pt")
        shutil.copy(saved, resumed / "checkpoint_last.pt")
        train_on_ranks(resumed, ranks, *flags)
        assert_same_bits(resumed / "checkpoint_last.pt", last)
        states = [repr(recorded_state(load_checkpoint(f / "checkpoint_last.pt"))) for f in (resumed, whole)]
        assert states[0] == states[1]


def test_plain_training_resumes_from_an_untied_checkpoint(train, commands, tmp_path):
    """Equal to a schedule that unties at the same update; fairseq's own transformer loads it, too."""
    common = ("--max-update", "6", "--disable-validation", "--no-epoch-checkpoints", "--dropout", "0.1")
    train(tmp_path / "swe", *SHARED, *TASK, "unshare", "--unshare-at", "3", *common)
    begun = tmp_path / "begun"
    train(begun, *SHARED, *TASK, "unshare", "--unshare-at", "99", *common, "--max-update", "3")
    commands.run("fairseq_sharing", "untie", begun / "checkpoint_last.pt", "--output", tmp_path / "untied.pt")
    expected = load_checkpoint(tmp_path / "swe" / "checkpoint_last.pt")
    for arch in ("transformer_sharing", "transformer"):
        folder = tmp_path / arch
        train(folder, *common, "--restore-file", tmp_path / "untied.pt", model=["--arch", arch, *LAYERS])
        got = load_checkpoint(folder / "checkpoint_last.pt")
        for name, value in got["model"].items():
            if torch.is_tensor(value) and name in expected["model"]:  # embeddings are stored once
                assert torch.equal(value, expected["model"][name]), name
        moments = [s["last_optimizer_state"]["state"] for s in (got, expected)]
        assert moments[0].keys() == moments[1].keys()
        for number, state in moments[0].items():
            assert torch.equal(state["exp_avg_sq"], moments[1][number]["exp_avg_sq"])
    told = commands.run("fairseq_sharing", "untie", tmp_path / "untied.pt", "--output", tmp_path / "no.pt", status=2)
    assert "the checkpoint has no shared layers" in told.stderr
    assert len(told.stderr.splitlines()) == 1


@pytest.fixture(scope="module")
def text(tmp_path_factory, commands):
    """A binarized monolingual corpus."""
    folder = tmp_path_factory.mktemp("text")
    draw = random.Random(2)
    for split, lines in (("train", 120), ("valid", 9)):
        sentences = [" ".join(draw.choices("abcdefgh", k=8)) for _ in range(lines)]
        (folder / split).write_text("\n".join(sentences) + "\n")
    commands.run(
        *("fairseq_cli.preprocess", "--only-source", "--destdir", folder / "bin"),
        *("--trainpref", folder / "train", "--validpref", folder / "valid"),
    )
    return folder / "bin"


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (
            "language_modeling_sharing",
            "--arch transformer_lm_sharing --decoder-layers 4 --decoder-embed-dim 16 --decoder-ffn-embed-dim 16 "
            "--decoder-attention-heads 2 --sharing-schedule dynamic --dynamic-interval 2",
        ),
        (
            "masked_lm_sharing",
            "--arch roberta_sharing --encoder-layers 4 --encoder-embed-dim 16 --encoder-ffn-embed-dim 16 "
            "--encoder-attention-heads 2 --criterion masked_lm --sharing universal --sharing-schedule unshare "
            "--unshare-when correlation --unshare-interval 2 --unshare-patience 1 --unshare-threshold 0.999",
        ),
    ],
)
def test_language_models_change_their_maps(task, words, text, commands, tmp_path):
    common = ["--tokens-per-sample", "32", "--sample-break-mode", "eos", "--batch-size", "16", "--lr", "0.001"]
    common += [
        "--optimizer",
        "adam",
        "--cpu",
        "--max-update",
        "6",
        "--save-dir",
        tmp_path,
        "--log-format",
        "json",
        "--log-interval",
        "1",
    ]
    common += ["--user-dir", "fairseq_sharing", "--no-epoch-checkpoints"]
    done = commands.run("fairseq_cli.train", text, "--task", task, *words.split(), *common)
    path = tmp_path / "checkpoint_last.pt"
    changes = recorded_changes(load_checkpoint(path))
    assert changes, done.stdout
    (stack,) = [name for name in changes[0]["after"] if name != "parameters"]
    assert describe_checkpoint(path)["layer_map"][stack] == changes[-1]["after"][stack]["layer_map"]
    if task.startswith("masked"):
        assert changes[-1]["after"][stack]["layer_map"] == [0, 1, 2, 3]
    assert json.dumps(changes)


def test_backends_that_cannot_follow_are_refused_at_start_up_by_name(commands, train_words, tmp_path):
    words = train_words(tmp_path, *SHARED, *SPLIT, *distributed(2), "--ddp-backend", "c10d", "--distributed-no-spawn")
    started = [commands.start("fairseq_cli.train", *words, "--distributed-rank", rank) for rank in range(2)]
    for command in started:
        told = command.wait(status=1).stderr.splitlines()[-1]
        assert "error: --ddp-backend c10d cannot be combined with --sharing-schedule" in told
        assert "allowed: --ddp-backend legacy_ddp" in told
