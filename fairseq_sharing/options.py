"""Helpers for options: the spelling of flags, and dataclass fields for fairseq's parser."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def flag_of(name: str) -> str:
    """Return the flag of an option (``unique_layers`` -> ``--unique-layers``)."""
    return "--" + name.replace("_", "-")


def option_field(text: str, default: Any = None) -> Any:
    """Declare a field of a FairseqDataclass.

    Args:
        text: the help text.
        default: the default.
    """
    return field(default=default, metadata={"help": text})
