"""The schema of a result file.

Names and texts of results become parts of Markdown, LaTeX, CSV, HTML and file names, so the schema leaves no characters
in them that one of these formats interprets. Only example sentences and commands, which appear on the page and the
terminal alone, may contain any text.
"""

from __future__ import annotations

import re
from typing import Any

from fairseq_sharing.documents import (
    Schema,
    has_fields,
    is_count,
    is_name,
    is_quantity,
    is_text,
    list_of,
    mapping_of,
    optional,
)

_PLAIN = re.compile(r"(?:[^\W_][\w (),.:;/#%&'@+-]*)?")
_SIGNATURE = re.compile(r"[\w.:|+/~-]*")
_METRIC = re.compile(r"[a-z]+\+*")  # such as chrf++


def is_plain(value: object) -> bool:
    """Return whether a value is text without characters that Markdown, LaTeX, CSV or HTML interprets."""
    return isinstance(value, str) and value.isprintable() and bool(_PLAIN.fullmatch(value))


def named(check: Any) -> Any:
    """Return a check for mappings from names to values."""
    return lambda value: mapping_of(check)(value) and all(map(is_name, value))


def _is_signature(value: object) -> bool:
    return isinstance(value, str) and bool(_SIGNATURE.fullmatch(value))


_NUMBERS = list_of(optional(lambda value: isinstance(value, int | float)))
_MAP: Schema = {"layer_map": (list_of(is_count), ""), "frozen": (list_of(is_count), "")}
_CHANGE: Schema = {"update": (is_count, ""), "reason": (is_text, "")}

_BUCKET: Schema = {"up_to": (optional(is_count), ""), "segments": (is_count, ""), "bleu": (is_quantity, "")}

SCORE: Schema = {
    "segments": (is_count, "a whole number"),
    **dict.fromkeys(("bleu", "chrf", "chrf++", "ter", "perplexity", "word_perplexity"), (is_quantity, "a number")),
    "bleu_interval": (lambda value: list_of(is_quantity)(value) and len(value) == 2, "two numbers"),
    "signature": (
        lambda value: mapping_of(_is_signature)(value) and all(map(_METRIC.fullmatch, value)),
        "sacreBLEU's signatures",
    ),
    "length_ratio": (is_quantity, "a number"),
    **dict.fromkeys(("empty", "over_long"), (is_count, "a whole number")),
    "by_length": (list_of(has_fields(_BUCKET, tuple(_BUCKET))), "scores by reference length"),
    "hypotheses": (is_text, "a path"),
    "depths": (named(is_count), "a number of sentences per depth"),
    **dict.fromkeys(("macs_per_sentence", "macs_per_sentence_all_layers"), (is_quantity, "a number")),
}


def _is_score(value: object) -> bool:
    translated = has_fields(SCORE, ("segments", "bleu", "bleu_interval", "chrf", "signature"))
    return translated(value) or has_fields(SCORE, ("perplexity",))(value)


def _is_map(value: object) -> bool:
    """Return whether a value has the map of each stack, and the number of parameters."""
    check = has_fields(_MAP, tuple(_MAP))
    return named(lambda item: is_count(item) or check(item))(value)


def _is_history(value: object) -> bool:
    return (
        isinstance(value, dict)
        and optional(_is_map)(value.get("start"))
        and list_of(lambda change: has_fields(_CHANGE, tuple(_CHANGE))(change) and _is_map(change.get("after")))(
            value.get("changes")
        )
    )


RESULT: Schema = {
    "run": (is_name, "a name without /"),
    "dataset": (is_name, "a name"),
    "seed": (is_count, "a whole number"),
    "arch": (optional(is_name), "a name"),
    "schedule": (optional(is_name), "a name"),
    "sharing": (lambda value: named(is_name)(value) and bool(value), "a strategy per stack"),
    "depth": (named(is_count), "a number per stack"),
    "depth_classifier": (named(lambda value: is_quantity(value) or is_name(value)), "names and numbers"),
    "layers": (named(is_count), "a number per stack"),
    "unique_layers": (named(is_count), "a number per stack"),
    "layer_map": (named(list_of(is_count)), "a list of labels per stack"),
    "parameters": (
        has_fields({"unique": (is_count, ""), "effective": (is_count, "")}, ("unique", "effective")),
        "numbers unique and effective",
    ),
    "mean_parameters": (is_count, "a whole number"),
    "macs": (is_quantity, "a number"),
    "updates": (is_count, "a whole number"),
    "epochs": (optional(is_count), "a whole number"),
    "tokens_per_second": (optional(is_quantity), "a number"),
    "train_seconds": (optional(is_quantity), "a number"),
    "peak_memory_bytes": (optional(is_count), "a whole number"),
    "device": (optional(named(lambda value: is_count(value) or is_plain(value))), "kind, name and count"),
    "versions": (optional(named(optional(is_plain))), "a version per package"),
    "commit": (optional(is_plain), "a commit"),
    "command": (optional(list_of(is_text)), "a list of words"),
    "valid": (named(_NUMBERS), "lists of numbers"),
    "map_history": (_is_history, "start and changes of the layer maps"),
    "checkpoint": (
        lambda value: isinstance(value, dict) and list_of(is_name)(value.get("averaged", [])),
        "the names of the averaged checkpoints",
    ),
    "generation": (
        named(lambda value: isinstance(value, int | float) or optional(is_plain)(value) or named(is_quantity)(value)),
        "settings of the search",
    ),
    "scores": (named(_is_score), "scores per test set"),
    "examples": (
        list_of(lambda value: mapping_of(is_text)(value) and {"source", "reference", "hypothesis"} <= set(value)),
        "source, reference and hypothesis of sentences",
    ),
}
