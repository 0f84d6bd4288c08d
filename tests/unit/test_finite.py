"""NaN and infinity in options, weights and results are refused with the name of the value."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from evaluation_results import result, write
from sharing_cases import BY_NAME
from tiny_models import dictionary, make_trainer, save, train_step

from fairseq_sharing.checkpoints.files import load_checkpoint, save_atomically
from fairseq_sharing.checkpoints.finite_weights import refuse_nonfinite_weights
from fairseq_sharing.commands import main
from fairseq_sharing.decoding.search import Search
from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.evaluate import EvaluationSettings, _change, _read_history, _refuse_nonfinite
from fairseq_sharing.evaluation.generation import parse_generated
from fairseq_sharing.finite import find_nonfinite, finite_number, is_number
from fairseq_sharing.reporting.results import read_result

NOT_FINITE = ["nan", "inf", "-inf", "1e999"]


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    trainer = make_trainer(data_dir, BY_NAME["cycle"])
    train_step(trainer)
    return save(trainer, tmp_path_factory.mktemp("trained") / "checkpoint1.pt")


@pytest.fixture
def damaged(trained, tmp_path):
    """Writes the trained checkpoint with one value of a tensor replaced."""

    def write_with(value: float, change=lambda content: content["model"]["decoder.layers.1.fc2.weight"]):
        content = load_checkpoint(trained)
        change(content).view(-1)[5] = value
        path = tmp_path / "damaged.pt"
        save_atomically(content, path)
        return path

    return write_with


@pytest.mark.parametrize("text", [*NOT_FINITE, "x", ""])
def test_option_type_takes_finite_numbers_only(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"^must be a finite number, got '{text}'$"):
        finite_number(text)
    assert (finite_number("-1.5"), finite_number("2")) == (-1.5, 2.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, True, "1", None])
def test_numbers_that_are_none(value):
    assert not is_number(value)
    with pytest.raises(SharingError, match="--lenpen must be a finite number, got "):
        Search(lenpen=value)
    for block in ({"lenpen": value}, {"test_lenpen": {"news": value}} if value is not None else {"lenpen": value}):
        with pytest.raises(SharingError, match=r"evaluate: length penalty (lenpen|news) must be a finite number, got "):
            EvaluationSettings.of(block)
    with pytest.raises(SharingError, match=r"evaluate\.max_len_a must be a finite number >= 0, got "):
        EvaluationSettings.of({"max_len_a": value})


@pytest.mark.parametrize("text", NOT_FINITE)
@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--lenpen", ["translate", "model"]),
        ("--lenpen", ["evaluate", "run"]),
        ("--memory", ["describe", "config.yaml"]),
        ("--tflops", ["study", "estimate", "wmt16_en_de"]),
    ],
)
def test_commands_refuse_such_options_before_any_work(flag, words, text, capsys):
    with pytest.raises(SystemExit) as exited:
        main([*words, f"{flag}={text}"])
    assert exited.value.code == 2
    assert capsys.readouterr().err.endswith(f"error: argument {flag}: must be a finite number, got '{text}'\n")


@pytest.mark.parametrize("option", ["lenpen", "unkpen", "temperature", "max_len_a"])
def test_fairseq_s_search_refuses_such_options(option):
    from fairseq.tasks.translation import TranslationTask

    task = TranslationTask(argparse.Namespace(), dictionary(), dictionary())
    flag = option.replace("_", "-")
    with pytest.raises(SharingError, match=f"^--{flag} must be a finite number, got nan$"):
        task.build_generator([], argparse.Namespace(beam=2, **{option: float("nan")}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_are_named_with_file_and_count(dtype, value):
    state = {"_extra_state": {"stacks": {}}, "empty": torch.ones(0), "ids": torch.arange(3), "w": torch.ones(2, 3)}
    state["w"] = state["w"].to(dtype)
    refuse_nonfinite_weights(state, "model.pt")
    state["w"][1] = value
    with pytest.raises(
        SharingError, match=r"^model.pt: tensor w has 3 of 6 values that are NaN or infinite; allowed: "
    ):
        refuse_nonfinite_weights(state, "model.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "words",
    [["average"], ["tie", "--sharing=none"], ["untie"], ["export", "--materialize"], ["export", "--to", "ctranslate2"]],
    ids=" ".join,
)
def test_commands_refuse_such_weights_and_write_nothing(damaged, words, value, data_dir, tmp_path, capsys):
    path, output = damaged(value), tmp_path / "output"
    data = ["--data", str(data_dir)] if "ctranslate2" in words else []
    assert main([*words, str(path), "--output", str(output), *data]) == 2
    told = capsys.readouterr().err
    assert f"error: {path}: tensor decoder.layers.1.fc2.weight has 1 of 512 values that are NaN or infinite" in told
    assert not output.exists()


def test_translate_refuses_such_weights_before_it_reads_a_line(damaged, data_dir, tmp_path, capsys):
    path = damaged(float("nan"))
    (tmp_path / "in").write_text("w5\n")
    assert main(["translate", str(path), str(tmp_path / "in"), "--data", str(data_dir), "--prepared"]) == 2
    assert (
        f"error: {path}: tensor decoder.layers.1.fc2.weight has 1 of 512 values that are NaN" in capsys.readouterr().err
    )


def test_untie_refuses_such_moments_of_the_optimizer(damaged, tmp_path, capsys):
    path = damaged(float("inf"), lambda content: content["last_optimizer_state"]["state"][0]["exp_avg_sq"])
    assert main(["untie", str(path), "--output", str(tmp_path / "output")]) == 2
    assert (
        f"{path}: tensor exp_avg_sq of encoder.embed_tokens.weight in the optimizer has 1 of "
        in capsys.readouterr().err
    )


def test_evaluate_checks_the_average_and_the_log_before_it_translates(damaged, tmp_path):
    path = damaged(float("nan"))
    with pytest.raises(SharingError, match=f"^{path}: tensor decoder.layers.1.fc2.weight has 1 of 512 values that are"):
        _read_history(path)
    with pytest.raises(
        SharingError, match=r"^runs/a: the result would contain experts\.0\.evenness: nan; allowed: finite"
    ):
        _refuse_nonfinite(Path("runs/a"), {"tokens_per_second": 1.5, "experts": [{"evenness": float("nan")}]})


@pytest.mark.parametrize("engine", ["fairseq", "ctranslate2"])
def test_outputs_that_overflow_are_reported_in_one_line(damaged, engine, data_dir, tmp_path, capsys):
    """The weights are finite, but the outputs of the model are not."""

    def overflow(content):
        content["model"]["decoder.layers.0.fc1.weight"].fill_(3e38)
        return content["model"]["decoder.layers.0.fc1.weight"]

    path = damaged(3e38, overflow)
    (tmp_path / "in").write_text("w5\n")
    words = ["translate", str(path), str(tmp_path / "in"), "--data", str(data_dir), "--prepared", "--engine", engine]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "log-probabilities" in (told := capsys.readouterr().err)
    assert "NaN or infinite" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("score", ["nan", "-inf", "x"])
def test_scores_of_fairseq_generate_must_be_finite(score):
    with pytest.raises(SharingError, match=f"^out: sentence 0 has the score {score}; allowed: finite numbers$"):
        parse_generated([f"H-0\t{score}\tja"], 1, "out")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda r: r["scores"]["test_2016_flickr"].update(bleu=float("nan")), "scores.test_2016_flickr.bleu: nan"),
        (lambda r: r["scores"]["test_2016_flickr"]["bleu_interval"].insert(0, float("-inf")), "bleu_interval.0: -inf"),
        (lambda r: r.update(tokens_per_second=float("inf")), "tokens_per_second: inf"),
        (lambda r: r["valid"]["loss"].append(float("nan")), "valid.loss.2: nan"),
    ],
)
def test_results_are_refused_by_file_and_field(change, field, tmp_path, capsys):
    content = result()
    change(content)
    write(tmp_path, content)
    with pytest.raises(SharingError, match=rf"vanilla-seed1\.json: \S*{field}; allowed: finite numbers"):
        read_result(tmp_path / "vanilla-seed1.json")
    assert main(["report", str(tmp_path)]) == 2
    assert f"{field}; allowed" in capsys.readouterr().err


def test_a_number_beyond_the_largest_is_infinite_in_json(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps(result()).replace("55.5", "1e999"))
    with pytest.raises(SharingError, match=r"scores\.test_2016_flickr\.chrf: inf"):
        read_result(tmp_path / "x.json")
    assert find_nonfinite({"a": [1, {"b": 2.0}], "c": "nan", "d": None}) is None


def test_a_gradient_norm_that_overflowed_is_null_in_a_result():
    change = {"update": 3, "before": {}, "gradient_norm": {"before": float("inf"), "after": 2.5}}
    assert _change(change) == {"update": 3, "gradient_norm": {"before": None, "after": 2.5}}
