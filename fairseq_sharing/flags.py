"""Convert a ``train`` block to flags of ``fairseq-train``, checked against fairseq's own parser."""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import io
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fairseq import options
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.registry import REGISTRIES
from fairseq.utils import csv_str_list, eval_bool
from omegaconf import OmegaConf

import fairseq_sharing
from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.command_line import flag_words
from fairseq_sharing.experiment.config import SET_ELSEWHERE, BadKeyError
from fairseq_sharing.experiment.ranges import check_ranges

# Options that fairseq's models and optimizers pass to eval(); only literals are accepted for them.
_EVALUATED = {
    *("adam_betas", "adamax_betas", "lamb_betas", "adafactor_eps", "adaptive_softmax_cutoff", "adaptive_input_cutoff"),
    *("character_filters", "encoder_xformers_att_config", "decoder_xformers_att_config", "wer_args"),
    *("encoder_layers", "decoder_layers", "encoder_attention", "decoder_attention", "self_attention", "pretrained"),
    *("project_input", "gated_attention", "downsample", "conv_feature_layers", "left_pad_source", "left_pad_target"),
    *("pipeline_balance", "pipeline_devices", "pipeline_encoder_balance", "pipeline_encoder_devices"),
    *("pipeline_decoder_balance", "pipeline_decoder_devices"),
}
_LITERALS = (
    *(ast.Expression, ast.Constant, ast.Tuple, ast.List, ast.Dict, ast.Load),
    *(ast.UnaryOp, ast.USub, ast.UAdd, ast.BinOp, ast.Add, ast.Mult),
)
_LISTED = 12  # maximum number of choices listed in an error; above it, the error lists the nearest ones


def words(train: Mapping[str, Any]) -> list[str]:
    """Convert a ``train`` block to the arguments of ``fairseq-train``.

    Args:
        train: flag names, with underscores instead of dashes, and their values. Null omits the flag. A switch is added
            if its value, true or false, is the one that the flag sets. A list becomes one argument, comma-separated or
            a Python literal, depending on the flag; a mapping becomes JSON.

    Returns:
        The arguments, in the order of the block.

    Raises:
        BadKeyError: an unknown key, or a value that its flag does not accept.
    """
    parser = _training_parser(train)
    given: dict[str, str] = {}
    found: list[str] = []
    for key, value in train.items():
        if value is None:
            continue
        flag, action = _action(parser, train, key)
        if action.dest in given:
            raise BadKeyError(key, f"the same flag as train.{given[action.dest]}; allowed: one of them")
        given[action.dest] = key
        found += _words(flag, action, key, value)
    return found


def parse(train: Mapping[str, Any]) -> argparse.Namespace:
    """Parse a ``train`` block with fairseq's parser, including the defaults and checks of the architecture.

    Raises:
        SharingError: an error of ``words``, or a combination of options that the model or fairseq rejects.
    """
    if not train.get("arch"):
        raise BadKeyError("arch", "missing; allowed: an architecture of fairseq or of this package")
    flags, printed = words(train), io.StringIO()
    check_ranges(train)  # before the architecture makes layer maps of this size
    try:
        with contextlib.redirect_stderr(printed):
            args = options.parse_args_and_arch(options.get_training_parser(), input_args=["unused", *flags])
        if hasattr(criterion := CRITERION_REGISTRY[args.criterion], "check_options"):
            criterion.check_options(args)
    except SystemExit as error:
        # argparse prints the complete usage before the error.
        line = printed.getvalue().strip().rpartition("\n")[2].partition("error: ")[2] or str(error.code)
        raise _refusal(train, line[:300]) from error
    except ValueError as error:
        raise _refusal(train, str(error)) from error
    check_ranges(vars(args))  # with the defaults of the architecture
    parser = _training_parser(train)
    for key, value in train.items():
        # Architectures turn some switches on, and most switches have a flag for only one of their values.
        if isinstance(value, bool) and (action := _action(parser, train, key)[1]).nargs == 0:
            actual = bool(getattr(args, action.dest, False))
            if actual is not value:
                raise BadKeyError(
                    key,
                    f"{_plain(value)}; --arch {args.arch} or another flag sets it to {_plain(actual)}, "
                    "and fairseq-train has no flag to undo this",
                )
    return args


def check(train: Mapping[str, Any], given: Sequence[str]) -> None:
    """Check a ``train`` block against the parser of ``fairseq-train``; for ``experiment.config.compose``.

    Args:
        train: the block.
        given: the keys that have a value in some layer of the configuration. Only these may be null without being
            flags of the chosen architecture; the null removes the value of a base.

    Raises:
        SharingError: an unknown key, or a value that its flag, the model or fairseq rejects.
    """
    parse(train)
    parser = _training_parser(train)
    for key in train:
        if key not in given:
            _action(parser, train, key)


def takes(train: Mapping[str, Any], key: str) -> bool:
    """Return whether ``fairseq-train`` has a flag for a key, given the rest of the block."""
    return _find(_training_parser(train), key) is not None


def _training_parser(train: Mapping[str, Any]) -> argparse.ArgumentParser:
    """Build fairseq's parser with the flags of the task, model, criterion etc. that a block selects."""
    fairseq_sharing.register()
    parser = options.get_training_parser()
    chosen = []
    for key in ("task", "arch", "use_bmuf", *REGISTRIES):
        if train.get(key) is not None:
            chosen += _words(*_action(parser, train, key), key, train[key])

    calls = itertools.count()

    def stop_at_the_second_call(_: argparse.ArgumentParser) -> None:
        if next(calls):
            raise _CompleteError

    with contextlib.suppress(_CompleteError):
        options.parse_args_and_arch(parser, input_args=chosen, modify_parser=stop_at_the_second_call)
    return parser


def _refusal(train: Mapping[str, Any], message: str) -> SharingError:
    """Attribute an error of a model or of fairseq to the first key of the block that its message mentions."""
    for flag in re.findall(r"--([a-z0-9][\w-]*)", message):
        if (key := flag.replace("-", "_")) in train:
            return BadKeyError(key, message)
    return SharingError(f"train block: {message}")


class _CompleteError(Exception):
    """Raised to leave fairseq's parse_args_and_arch after it has added all flags and before it parses."""


def _find(parser: argparse.ArgumentParser, key: str) -> tuple[str, argparse.Action] | None:
    """Find the flag of a key and its parser action; a few flags of fairseq contain underscores."""
    for flag in (f"--{key.replace('_', '-')}", f"--{key}"):
        action = parser._option_string_actions.get(flag)
        if action is not None and action.dest != "help":
            return flag, action
    return None


def _action(parser: argparse.ArgumentParser, train: Mapping[str, Any], key: str) -> tuple[str, argparse.Action]:
    found = _find(parser, key)
    if found is not None:
        return found
    known = {flag[2:].replace("-", "_") for flag in parser._option_string_actions if flag.startswith("--")}
    near = difflib.get_close_matches(key, known - {"help", *SET_ELSEWHERE}, n=1)
    chosen = " ".join(f"--{name.replace('_', '-')} {train[name]}" for name in ("task", "arch") if train.get(name))
    raise BadKeyError(
        key,
        f"unknown key{f'; nearest: {near[0]}' if near else ''}; allowed: the flags of fairseq-train {chosen}".rstrip(),
    )


def _words(flag: str, action: argparse.Action, key: str, value: Any) -> list[str]:
    """Return the arguments of one flag; none if omitting the flag gives the same value."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise BadKeyError(key, f"{_plain(value)}; allowed: true, false")
        return [flag] if value is action.const else []
    if action.nargs == "?" and isinstance(value, bool):
        return [flag] if value else []
    for word in _spellings(action, value):
        if _takes(action, word, value):
            return flag_words(flag, word)
    raise BadKeyError(key, f"{_plain(value)}; allowed: {_allowed(action, value)}")


def _spellings(action: argparse.Action, value: Any) -> Sequence[str]:
    """Return the possible spellings of a value: fairseq uses comma-separated lists, Python literals and JSON."""
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value)
    if isinstance(value, bool):
        # YAML reads off and on, which some flags accept, as booleans.
        switch = "on" if value else "off"
        return [switch if switch in (action.choices or ()) else str(value)]
    if isinstance(value, Mapping):
        return [json.dumps(value), repr(value)]
    if isinstance(value, list | tuple):
        return [",".join(map(str, value)), repr(list(value))] if value else []
    return [str(value)]


def _takes(action: argparse.Action, word: str, value: Any) -> bool:
    """Return whether a flag accepts an argument and parses it to the value in the block."""
    simple = action.type in (None, str)
    evaluated = action.dest in _EVALUATED if simple else action.type not in (int, float, csv_str_list)
    if evaluated and not _is_literal(word):
        return False
    if action.choices is not None:
        return word in action.choices
    if simple:
        return not isinstance(value, bool)
    assert callable(action.type)
    try:
        read = action.type(word)
    except (ValueError, TypeError, argparse.ArgumentTypeError):
        return False
    if isinstance(read, float) and not math.isfinite(read):
        return False
    if isinstance(value, bool):
        return read is value
    return isinstance(value, str) or read in (value, [value])


def _is_literal(word: str) -> bool:
    try:
        tree = ast.parse(word.strip(), mode="eval")
    except (SyntaxError, ValueError):
        return False
    return all(isinstance(node, _LITERALS) for node in ast.walk(tree))


def _allowed(action: argparse.Action, value: Any) -> str:
    if action.choices is not None:
        choices = [str(choice) for choice in action.choices]
        near = difflib.get_close_matches(str(value), choices, n=3)
        if len(choices) <= _LISTED or not near:
            return ", ".join(choices)
        return f"{', '.join(near)}, ... ({len(choices)} choices)"
    if action.type in (int, float):
        return "a whole number" if action.type is int else "a number"
    if action.type in (None, str):
        return "numbers or a list of numbers" if action.dest in _EVALUATED else "text or a number"
    if action.type is eval_bool:
        return "true, false"
    return f"values of {action.option_strings[0]} of fairseq-train, for example {_example(action)}"


def _example(action: argparse.Action) -> str:
    examples = ("[0.5, 1]", "[1, 2]", "['a', 'b']", "{'a': 'b'}")
    return next((text for text in examples if _takes(action, text, ast.literal_eval(text))), "null")


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
