"""Models with expert banks in fairseq's own commands: training, resume, several ranks, decoding, perplexity."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from fairseq_processes import PLUGIN, logged
from tiny_training import LAYERS, assert_same_bits

from fairseq_sharing.checkpoints.files import load_checkpoint

BANKS = ["--head-dim", "8", "--attention-experts", "4", "--ffn-experts", "6", "--ffn-top-k", "2", "--expert-dim", "8"]
MODEL = ["--arch", "transformer_moeut", *LAYERS, *BANKS, "--decoder-attention-heads", "2"]
BALANCED = ["--criterion", "moe_cross_entropy", "--ffn-entropy", "0.1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, train):
    """The checkpoints and the log of a training with all kinds of dropout."""
    folder = tmp_path_factory.mktemp("moeut")
    flags = ["--dropout", "0.1", "--expert-dropout", "0.1", "--save-interval-updates", "5", "--max-update", "17"]
    tensorboard = ["--tensorboard-logdir", folder / "tensorboard", "--log-expert-usage"]
    return folder, flags, train(folder, *BALANCED, *flags, *tensorboard, model=MODEL).stdout


def test_a_resumed_training_is_bitwise_equal(trained, train, tmp_path):
    folder, flags, _ = trained
    shutil.copy(next(folder.glob("checkpoint_*_5.pt")), tmp_path / "checkpoint_last.pt")
    train(tmp_path, *BALANCED, *flags, model=MODEL)
    assert_same_bits(tmp_path / "checkpoint_last.pt", folder / "checkpoint_last.pt")


def test_use_of_the_experts_is_logged(trained):
    folder, _, log = trained
    entry = logged(log, "valid_decoder_ffn_4_evenness")[-1]
    assert 0 < float(entry["valid_decoder_ffn_4_evenness"]) <= 1
    assert 0 <= float(entry["valid_encoder_self_attn_output_2_dead"]) < 1
    assert len(entry["valid_encoder_self_attn_value_1_choices"]) == 2 * 4
    assert float(logged(log, "train_balance")[-1]["train_balance"]) < 0

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard" / "valid"))
    events.Reload()
    assert "decoder_ffn_4_dead" in events.Tags()["scalars"]
    assert not any(tag.endswith("choices") for tag in events.Tags()["scalars"])


def test_it_translates(trained, translate):
    folder, _, _ = trained
    hypotheses = translate(folder / "checkpoint_last.pt", subset="test1")["H"]
    assert sorted(hypotheses) == [0, 1, 2, 3, 4]
    assert all(5 <= len(text.split()) <= 9 for _, text in hypotheses.values())


def test_two_ranks_make_the_update_of_two_batches(train_on_ranks, tmp_path):
    flags = ["--dropout", "0", "--optimizer", "sgd", "--lr", "0.5", "--max-update", "3", *BALANCED, *MODEL[2:]]
    states = []
    for ranks, update_freq in ((2, 1), (1, 2)):
        folder = tmp_path / str(ranks)
        train_on_ranks(folder, ranks, "--arch", "transformer_moeut", *flags, "--update-freq", update_freq)
        states.append(load_checkpoint(folder / "checkpoint_last.pt")["model"])
    for name, value in states[0].items():
        if torch.is_tensor(value):
            torch.testing.assert_close(value, states[1][name], atol=5e-6, rtol=1e-5, msg=lambda text, n=name: n + text)


def test_bad_options_end_in_one_line(train, tmp_path):
    done = train(tmp_path, "--ffn-top-k", "8", model=MODEL, status=1)
    assert done.stderr == (
        "fairseq-train: error: --ffn-top-k must be between 1 and --ffn-experts (6), got 8; nearest: 6\n"
    )


def test_a_language_model_learns(commands, tmp_path):
    text = "\n".join(" ".join(f"w{(start + word) % 20}" for word in range(12)) for start in range(80)) + "\n"
    for split in ("train", "test"):
        (tmp_path / split).write_text(text)
    prefixes = ["--trainpref", tmp_path / "train", "--validpref", tmp_path / "test", "--testpref", tmp_path / "test"]
    commands.run("fairseq_cli.preprocess", "--only-source", *prefixes, "--destdir", tmp_path / "bin")
    task = ["--user-dir", PLUGIN, "--task", "language_modeling", "--cpu"]
    done = commands.run(
        *("fairseq_cli.train", tmp_path / "bin", *task, "--arch", "transformer_lm_moeut_44m", *BANKS, *BALANCED),
        *("--decoder-layers", "4", "--decoder-embed-dim", "16", "--decoder-attention-heads", "2"),
        *("--sample-break-mode", "eos", "--tokens-per-sample", "64", "--optimizer", "adam", "--lr", "0.02"),
        *("--batch-size", "16", "--max-epoch", "6", "--save-dir", tmp_path, "--log-format", "json"),
    )
    assert json.loads(json.dumps(logged(done.stdout, "valid_decoder_ffn_1_dead")))
    told = commands.run(
        *("fairseq_cli.eval_lm", tmp_path / "bin", *task, "--path", tmp_path / "checkpoint_last.pt"),
        *("--gen-subset", "test", "--sample-break-mode", "eos"),
    )
    perplexity = float(re.findall(r"Perplexity: ([\d.]+)", told.stdout + told.stderr)[-1])
    assert 1 < perplexity < 4, "each of 20 words is followed by one word, so a trained model is far below 20"
