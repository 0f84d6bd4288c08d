"""Senseless values of flags and configuration keys are refused at the start, in one line."""

from __future__ import annotations

import argparse

import pytest
from command_errors import failed

from fairseq_sharing import flags
from fairseq_sharing.commands import main
from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.config import compose
from fairseq_sharing.experiment.ranges import RANGES, check_ranges
from fairseq_sharing.finite import positive_number, whole_number
from fairseq_sharing.training.plan import Machines

TRANSLATE = ("translate", "model")
WHOLE = {
    "--last": ["average", "a", "--output", "b"],
    "--workers": ["prepare", "toy", "--out", "x"],
    "--subword-size": ["prepare", "toy", "--out", "x"],
    "--vocabulary": ["describe", "toy", "row=vanilla"],
    "--length": ["describe", "toy", "row=vanilla"],
    "--devices": ["train", "toy", "row=vanilla", "--dry-run"],
    "--nodes": ["train", "toy", "row=vanilla", "--dry-run"],
    **dict.fromkeys(("--beam", "--nbest", "--max-len-b", "--max-tokens", "--buffer", "--threads"), TRANSLATE),
}
NUMBERS = {"--memory": ["describe", "toy", "row=vanilla"]}
SENSELESS = ["0", "-5", "nan", "inf", "-inf", "1e999", "", " ", "x", "9" * 30, "true", "[1]"]


@pytest.mark.parametrize("value", [*SENSELESS, "1.5", "1_0", "٣"])
@pytest.mark.parametrize("flag", WHOLE)
def test_whole_numbers(flag, value, capfd):
    text = failed(capfd, [*WHOLE[flag], f"{flag}={value}"])
    assert text.startswith(f"argument {flag}: must be a whole number from 1 to ")
    assert text.endswith(f", got {value!r}")


@pytest.mark.parametrize("value", SENSELESS)
@pytest.mark.parametrize("flag", NUMBERS)
def test_numbers(flag, value, capfd):
    text = failed(capfd, [*NUMBERS[flag], f"{flag}={value}"])
    assert text.startswith(f"argument {flag}: must be a ")
    assert text.endswith(f"number{text.partition('number')[2]}")
    assert repr(value) in text


def test_the_parsers_accept_their_limits():
    assert whole_number()("1") == 1
    assert whole_number(0, 7)("+7") == 7
    assert positive_number("1e9") == 1e9
    for parse, text in ((whole_number(0, 7), "8"), (positive_number, "1.1e9")):
        with pytest.raises(argparse.ArgumentTypeError):
            parse(text)


OWN_LIMITS = [
    (["distill", "run", "--out", "x", "--seed=-1"], "argument --seed: must be a whole number from 0 to "),
    (
        ["distill", "run", "--out", "x", "--upsample-original=1001"],
        "argument --upsample-original: must be a whole number",
    ),
    (
        ["distill", "run", "--out", "x", "--targets=sample", "--temperature=1e-300"],
        "--temperature must be a number from",
    ),
    (
        ["distill", "run", "--out", "x", "--targets=sample", "--temperature=nan"],
        "argument --temperature: must be a finite",
    ),
    (
        ["tie", "a.pt", "--output", "x", "--encoder-layers=0"],
        "argument --encoder-layers: must be a whole number from 1 to",
    ),
    (["tie", "a.pt", "--output", "x", "--decoder-layers=10001"], "argument --decoder-layers: must be a whole number"),
    (
        ["tie", "a.pt", "--output", "x", "--unique-layers=0"],
        "argument --unique-layers: must be a whole number from 1 to",
    ),
    (["tie", "a.pt", "--output", "x", "--depth-lora=-1"], "argument --depth-lora/--lora-rank: must be a whole number"),
    (
        ["tie", "a.pt", "--output", "x", "--fit-iterations=-1"],
        "argument --fit-iterations: must be a whole number from 0",
    ),
    (["study", "run", "toy", "--dry-run", "--budget=99999999999999999999h"], "argument --budget: 9"),
    (["study", "run", "toy", "--dry-run", "--out="], "argument --out: must not be empty"),
    (["study", "run", "toy", "--dry-run", "--mirror="], "argument --mirror: must not be empty"),
    (["study", "estimate", "toy", "--tflops=1e-300"], "argument --tflops: must be a number above 0"),
]


@pytest.mark.parametrize(("words", "message"), OWN_LIMITS, ids=lambda value: str(value[-1]))
def test_limits_of_single_flags(words, message, capfd):
    assert failed(capfd, words).startswith(message)


@pytest.mark.parametrize("port", ["0", "-1", "65536", "99999999999", "x", "", "1.5", "٣"])
def test_ports(port):
    with pytest.raises(SharingError, match=r"^--master must be HOST:PORT, got .*; allowed: ports 1 to 65535$"):
        Machines(2, 0, f"host:{port}")
    assert Machines(2, 0, "host:65535").master_address() == ("host", "65535")


BLOCK = "train={arch: transformer_sharing_tiny, batch_size: 4, criterion: label_smoothed_cross_entropy}"
KEYS = [
    ("train.lr=-1", "train.lr: -1; allowed: numbers above 0"),
    ("train.lr=[0.1,0]", "train.lr: [0.1, 0]; allowed: numbers above 0"),
    ("train.dropout=2", "train.dropout: 2; allowed: numbers from 0 to below 1"),
    ("train.dropout=1", "train.dropout: 1; allowed: numbers from 0 to below 1"),
    ("train.attention_dropout=-0.1", "train.attention_dropout: -0.1; allowed: numbers from 0 to below 1"),
    ("train.label_smoothing=1.5", "train.label_smoothing: 1.5; allowed: numbers from 0 to below 1"),
    ("train.encoder_layers=0", "train.encoder_layers: 0; allowed: numbers from 1"),
    ("train.decoder_embed_dim=-8", "train.decoder_embed_dim: -8; allowed: numbers from 1"),
    ("train.encoder_attention_heads=3", "train.encoder_attention_heads: 3; allowed: divisors of train.encoder_embed"),
    ("train.encoder_attention_heads=0", "train.encoder_attention_heads: 0; allowed: numbers from 1"),
    ("train.max_epoch=-1", "train.max_epoch: must be a whole number from 0, got -1"),
    ("train.max_tokens=0", "train.max_tokens: 0; allowed: numbers from 1"),
    ("train.batch_size=0", "train.batch_size: 0; allowed: numbers from 1"),
    ("train.update_freq=[1,-2]", "train.update_freq: [1, -2]; allowed: numbers from 1"),
    ("train.clip_norm=-1", "train.clip_norm: -1; allowed: numbers from 0"),
    ("train.log_interval=0", "train.log_interval: 0; allowed: numbers from 1"),
    ("train.num_workers=-1", "train.num_workers: -1; allowed: numbers from 0"),
    ("train.max_source_positions=0", "train.max_source_positions: 0; allowed: numbers from 1"),
    ("train.keep_last_epochs=-2", "train.keep_last_epochs: -2; allowed: numbers from -1"),
    ("train.max_update=99999999999", "train.max_update: 99999999999; allowed: numbers from 0"),
    ("seed=true", "seed: must be a whole number from 0, got True"),
    ("seed=-1", "seed: must be a whole number from 0, got -1"),
    ("seed=99999999999", "seed: must be a whole number from 0, got 99999999999; at most 2147483647"),
    ("seed=null", "seed: must be a whole number from 0, got None"),
    ("run={a: 1}", "run: \"{'a': 1}\"; allowed: letters, digits and . _ -"),
    ("run=true", "run: 'True'; allowed: letters, digits and . _ -"),
    ("dataset=[1]", "dataset: '[1]'; allowed: letters, digits and . _ -"),
    ("data=3", "data: must be a path, got 3"),
    ("train=3", "train: must be a mapping, got 3"),
    ("train.optimizer=adam train.adam_betas='(0.9, 2)'", "train.adam_betas: (0.9, 2); allowed: numbers from 0"),
    ("train.encoder_layers=100000000", "train.encoder_layers: 100000000; allowed: numbers from 1 to 10,000"),
    ("train.optimizer=adam train.adam_betas=[0.9]", "train.adam_betas: [0.9]; allowed: two numbers, got 1"),
    (
        "train.lr_scheduler=polynomial_decay train.total_num_update=0",
        "train.total_num_update: 0; allowed: numbers from 1 with polynomial_decay",
    ),
    ("train.optimizer=adam train.adam_eps=0", "train.adam_eps: 0; allowed: numbers above 0"),
]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    file = tmp_path_factory.mktemp("experiment") / "mine.yaml"
    file.write_text("dataset: toy\n")
    return file


@pytest.mark.parametrize(("overrides", "message"), KEYS)
def test_keys_of_a_configuration(experiment, overrides, message):
    words = overrides.split(" ", 1) if overrides.startswith(("train.optimizer", "train.lr_")) else [overrides]
    with pytest.raises(SharingError) as error:
        compose(experiment, [BLOCK, *(word.replace("'", "") for word in words)], check=flags.check)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluate.beam=0", "evaluate.beam must be an integer >= 1, got 0"),
        ("evaluate.lenpen=.nan", "evaluate: length penalty lenpen must be a finite number, got nan"),
        ("evaluate.average_last=true", "evaluate.average_last must be an integer >= 1, got True"),
        ("evaluate.test_lenpen=[1]", "evaluate.test_lenpen: [1]; allowed: a mapping from test set to length penalty"),
        ("evaluate.compound_split=7", "evaluate.compound_split must be true or false, got 7"),
        ("evaluate.beam=1001", "evaluate.beam must be at most 1,000, got 1001"),
        ("evaluate.max_tokens=1000000001", "evaluate.max_tokens must be at most 1,000,000,000, got 1000000001"),
        ("evaluate.max_len_a=-1", "evaluate.max_len_a must be a finite number >= 0, got -1"),
        ("train.dropout=2", "override: train.dropout: 2; allowed: numbers from 0 to below 1"),
        ("tokens_per_batch=0", "tokens_per_batch=0: not a multiple of "),
    ],
)
def test_a_dry_run_refuses_them_too(override, message, tmp_path, capfd):
    words = ["train", "toy", "row=vanilla", "--dry-run", "--data", tmp_path, "--runs", tmp_path / "runs", override]
    assert message in failed(capfd, words)
    if not override.startswith("tokens"):
        assert message in failed(capfd, ["study", "run", "toy", "--out", tmp_path, "--dry-run", override])
        assert message in failed(capfd, ["describe", "toy", "row=vanilla", "--vocabulary", 50, override])
    assert not list(tmp_path.iterdir())


def test_every_range_allows_fairseq_s_default():
    check_ranges(vars(flags.parse({"arch": "transformer_sharing_tiny", "batch_size": 4})))
    check_ranges(vars(flags.parse({"arch": "transformer_lm_sharing", "task": "language_modeling", "batch_size": 4})))
    known = vars(flags.parse({"arch": "transformer_sharing_tiny", "batch_size": 4, "optimizer": "adam"}))
    assert len(RANGES.keys() & known.keys()) > 40


@pytest.mark.parametrize("language", ["xx", "../x", "", "e n"])
def test_languages_of_the_toy_corpus(language, tmp_path, capfd):
    text = failed(capfd, ["prepare", "toy", "--out", tmp_path / "toy", f"--source-lang={language}"])
    assert text.startswith("--source-lang")
    assert not list(tmp_path.iterdir())


def test_help_still_works(capfd):
    with pytest.raises(SystemExit) as exited:
        main(["translate", "--help"])
    assert exited.value.code == 0
    assert "--beam N" in capfd.readouterr().out
