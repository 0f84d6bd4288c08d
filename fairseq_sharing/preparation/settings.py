"""Read and check the settings of a recipe: cleaning, subwords and tokenizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq_sharing.errors import SharingError
from fairseq_sharing.finite import is_number
from fairseq_sharing.options import flag_of
from fairseq_sharing.preparation.text import SUBWORDS

CLEANING = {"min_tokens": 1, "max_tokens": 250, "max_ratio": 1.5, "max_word_length": 1000}
"""Defaults of Moses' clean-corpus-n.perl, with the length ratio that fairseq's translation examples use."""

SENTENCEPIECE = {"character_coverage": 1.0, "max_sentence_length": 4192}
"""Defaults for learning SentencePiece: the fraction of characters with a piece, and the longest line, in bytes."""

DEFAULT_SUBWORD_SIZE = 10_000

_TOKENIZER_SWITCHES = ("normalize", "aggressive_dashes", "escape", "lowercase")


def read_cleaning(where: str, content: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read the limits of training pairs; None to keep all pairs.

    Args:
        where: name of the recipe in error messages.
        content: the recipe.
        given: settings of the command line, without missing ones.

    Raises:
        SharingError: an unknown key, or a limit for a recipe that keeps every line.
    """
    cleaning = content.get("cleaning", {})
    if cleaning == "none":
        if flags := [flag_of(key) for key in CLEANING if key in given]:
            raise SharingError(f"{flags[0]} cannot be used with {where}, which keeps every line (cleaning: none)")
        return None
    if not isinstance(cleaning, Mapping) or set(cleaning) - set(CLEANING):
        raise SharingError(
            f"{where}: cleaning must be none or a mapping with keys of {', '.join(CLEANING)}, got {cleaning}"
        )
    return {key: given.get(key, cleaning.get(key, default)) for key, default in CLEANING.items()}


def read_subword(where: str, content: Mapping[str, Any], given: Mapping[str, Any], path: Path | None) -> dict[str, Any]:
    """Read the settings of the subwords.

    Args:
        where: name of the recipe in error messages.
        content: the recipe.
        given: settings of the command line, without missing ones.
        path: the recipe's file; the path of existing merges is relative to its folder.

    Raises:
        SharingError: an unknown key, or a setting that another kind of subwords does not have.
    """
    subword = content.get("subword", {})
    own = SENTENCEPIECE if isinstance(subword, Mapping) and subword.get("name") == "sentencepiece" else {}
    if not isinstance(subword, Mapping) or set(subword) - {"name", "size", "codes", *own}:
        raise SharingError(
            f"{where}: subword must be a mapping with name, and size or codes, and for sentencepiece "
            f"{' and '.join(SENTENCEPIECE)}, got {subword}"
        )
    name, size = given.get("subword", subword.get("name", "bpe")), given.get("subword_size")
    if name != "sentencepiece":
        for key in SENTENCEPIECE:
            if key in given:
                raise SharingError(f"{flag_of(key)} cannot be used with --subword {name}, got {given[key]}")
    ready = name == "bpe" and size is None and subword.get("codes")
    if ready:
        return {"name": name, "codes": str((path.parent if path else Path()) / ready)}
    if name != "none":
        own_settings = {key: {**subword, **given}[key] for key in SENTENCEPIECE if key in {**subword, **given}}
        size = subword.get("size", DEFAULT_SUBWORD_SIZE) if size is None else size
        return {"name": name, "size": size, **(own_settings if name == "sentencepiece" else {})}
    if size is not None:
        raise SharingError(f"--subword-size cannot be used with --subword none, got {size}")
    return {"name": "none"}


def read_tokenizer(where: str, content: Mapping[str, Any], given: Mapping[str, Any], subword: str) -> dict[str, Any]:
    """Read the settings of the tokenizer.

    Args:
        where: name of the recipe in error messages.
        content: the recipe.
        given: settings of the command line, without missing ones.
        subword: name of the kind of subwords, which determines the default.

    Raises:
        SharingError: an unknown key, or a switch that is neither true nor false.
    """
    if not isinstance(content.get("tokenizer", {}), Mapping):
        raise SharingError(f"{where}: tokenizer must be a mapping with name and settings, got {content['tokenizer']}")
    tokenizer = dict(content.get("tokenizer", {}))
    for key, value in tokenizer.items():
        if key != "name" and not (key in _TOKENIZER_SWITCHES and isinstance(value, bool)):
            raise SharingError(
                f"{where}: tokenizer: {key}: {value}; allowed: name, and true or false for "
                f"{', '.join(_TOKENIZER_SWITCHES)}"
            )
    if "tokenizer" in given:
        tokenizer["name"] = given["tokenizer"]
    elif "name" not in tokenizer:
        # sentencepiece learns from plain text, including spaces, which tokenization would change.
        tokenizer["name"] = "none" if subword == "sentencepiece" else "moses"
    if tokenizer["name"] == "moses":
        return {"aggressive_dashes": False, "escape": False, **tokenizer}
    return {key: value for key, value in tokenizer.items() if key in ("name", "lowercase")}


def check_cleaning(limits: Mapping[str, Any]) -> None:
    """Check the limits of training pairs.

    Raises:
        SharingError: a limit is out of range; the message names its flag.
    """
    check_at_least("--min-tokens", limits["min_tokens"], 1)
    check_at_least("--max-tokens", limits["max_tokens"], limits["min_tokens"])
    check_at_least("--max-ratio", limits["max_ratio"], 1, float)
    check_at_least("--max-word-length", limits["max_word_length"], 1)


def check_subword(subword: Mapping[str, Any]) -> None:
    """Check the settings of the subwords.

    Raises:
        SharingError: a setting is out of range; the message names its flag.
    """
    check_choice("--subword", subword["name"], SUBWORDS)
    if "size" in subword:
        check_at_least("--subword-size", subword["size"], 1)
    if "max_sentence_length" in subword:
        check_at_least("--max-sentence-length", subword["max_sentence_length"], 1)
    if "character_coverage" in subword:
        coverage = subword["character_coverage"]
        if not is_number(coverage) or not 0.98 <= coverage <= 1:
            raise SharingError(f"--character-coverage must be between 0.98 and 1, got {coverage}")


def check_choice(flag: str, value: object, allowed: tuple[str, ...]) -> None:
    """Check that a value is one of the allowed ones.

    Args:
        flag: name of the value in the error message.
        value: the value.
        allowed: the allowed values.

    Raises:
        SharingError: it is none of them.
    """
    if value not in allowed:
        raise SharingError(f"{flag} must be one of {', '.join(allowed)}, got {value!r}")


def check_at_least(flag: str, value: object, least: float, kind: type[int] | type[float] = int) -> None:
    """Check that a value is a finite number and large enough.

    Args:
        flag: name of the value in the error message.
        value: the value.
        least: the lowest allowed value.
        kind: int to refuse fractions.

    Raises:
        SharingError: it is not a number of that kind, or too small.
    """
    kinds = (int,) if kind is int else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) or not least <= value < math.inf:
        allowed = "integers" if kind is int else "finite numbers"
        raise SharingError(f"{flag} must be at least {least}, got {value}; allowed: {allowed}")
