"""The list of flags equals that of fairseq's parser and shows the flags that an architecture takes."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

import pytest
from fairseq import models
from fairseq.models import roberta, transformer, transformer_lm

import fairseq_sharing
from fairseq_sharing.commands import main
from fairseq_sharing.errors import SharingError
from fairseq_sharing.flag_list import REFUSED, architectures, as_markdown, list_flags
from fairseq_sharing.layer_map import SHARING_CHOICES

fairseq_sharing.register()
PAGE = Path(fairseq_sharing.__file__).parents[1] / "docs" / "flags.md"
STOCK = {
    "transformer_sharing": transformer.TransformerModel,
    "transformer_moeut": transformer.TransformerModel,
    "transformer_lm_sharing": transformer_lm.TransformerLanguageModel,
    "transformer_lm_moeut": transformer_lm.TransformerLanguageModel,
    "roberta_sharing": roberta.RobertaModel,
}
# For each option that some model refuses, a value other than the default.
OTHER = {
    "admin": "profile",
    "deepnorm": True,
    "b2t": True,
    "encoder_no_ffn": True,
    "decoder_no_ffn": True,
    "embedding_factor_dim": 8,
    "depth_signal": "learned",
    "position_per_depth": True,
    "act": "encoder",
    "fast": True,
    "compile": True,
    "precision": "bf16",
    "component_sharing": "ffn=universal",
    "cross_stack_sharing": "ffn=universal",
    "depth_lora": 2,
    "depth_scale": True,
    "depth_bias": True,
    "depth_norm": True,
}
# Options that are refused for the same reasons as others, or have no effect without another one.
SAME_REASON = {"act_epsilon", "encoder_component_sharing", "decoder_component_sharing", "depth_lora_of"}


def _names(arch: str) -> dict[str, str]:
    """Return the listed flags of an architecture with their defaults."""
    return {flag.name: flag.default for group in list_flags(arch) for flag in group.flags}


def _parsed(model) -> set[str]:
    parser = ArgumentParser(add_help=False)
    model.add_args(parser)
    return {action.option_strings[-1] for action in parser._actions}


def test_the_page_is_the_output_of_the_command(capsys):
    assert main(["flags", "--markdown"]) == 0
    assert capsys.readouterr().out == PAGE.read_text(encoding="utf-8")


def test_choices_of_sharing_on_the_page_are_those_of_the_code():
    (line,) = [
        line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `--sharing` | none")
    ]
    assert tuple(line.split(" | ")[1].split(", ")) == SHARING_CHOICES


@pytest.mark.parametrize("name", STOCK)
def test_every_flag_that_a_model_adds_is_listed(name):
    assert set(architectures()) == set(STOCK)
    added = _parsed(models.MODEL_REGISTRY[name]) - _parsed(STOCK[name])
    assert "--sharing" in added
    assert added <= set(_names("all"))


@pytest.mark.parametrize("name", STOCK)
def test_flags_that_are_not_listed_for_a_model_are_those_it_refuses(name):
    refused, reasons = set(), []
    for option, value in OTHER.items():
        stack = {option: "decoder"} if option == "act" and "_lm_" in name else {option: value}
        fast = {"fast": True} if option == "compile" else {}
        try:
            models.ARCH_CONFIG_REGISTRY[name](Namespace(**stack, **fast))
        except SharingError as error:
            refused.add(option)
            reasons.append((f"--{option}".replace("_", "-"), str(error)))
    assert all(flag in reason or "--fast" in reason for flag, reason in reasons)
    assert refused == set(REFUSED.get(name, ())) - SAME_REASON
    listed = _names(name)
    assert {option for option in OTHER if f"--{option}".replace("_", "-") not in listed} == refused


@pytest.mark.parametrize(
    ("arch", "defaults", "missing"),
    [
        ("transformer_sharing", {"--sharing": "none", "--sharing-scope": "layer"}, {"--head-dim", "--ffn-entropy"}),
        (
            "transformer_moeut_tiny",
            {"--sharing": "cycle", "--unique-layers": "2", "--decoder-ffn-experts": "14"},
            {"--act"},
        ),
        ("transformer_lm_moeut_44m", {"--ffn-experts": "155", "--ffn-entropy": "0.01"}, {"--encoder-sharing"}),
        ("transformer_lm_moeut_dense_44m", {"--head-dim": "41"}, {"--ffn-experts", "--ffn-entropy"}),
        ("roberta_sharing", {"--sharing-schedule": ""}, {"--decoder-sharing", "--label-smoothing"}),
    ],
)
def test_flags_of_an_architecture_have_its_defaults(arch, defaults, missing):
    listed = _names(arch)
    assert {name: listed[name] for name in defaults} == defaults
    assert not missing & set(listed)
    assert f"| `{next(iter(defaults))}` |" in as_markdown(list_flags(arch))


def test_an_unknown_architecture_is_refused_in_one_line(capsys):
    assert main(["flags", "transformer_shared"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("fairseq-sharing flags: error: ARCH must be all or one of transformer_sharing, ")
    assert told.endswith("got 'transformer_shared'\n")
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("arch", "listed"),
    [("transformer_sharing", True), ("transformer_lm_sharing", False), ("transformer_moeut", False)],
)
def test_the_teacher_is_listed_for_translation_models_without_experts(arch, listed):
    assert ("--teacher" in _names(arch)) is listed
