"""Helpers for options: the spelling of flags, dataclass fields for fairseq's parser, and refusals."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import field
from typing import Any

from fairseq_sharing.errors import SharingError


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


def joined(value: Any) -> Any:
    """Return the value of a flag: a list as comma-separated text, and any other value as it is."""
    return value if isinstance(value, str) or not isinstance(value, Sequence) else ",".join(map(str, value))


def refuse(args: Namespace, name: str, reason: str, allowed: Any, what: str = "this model") -> None:
    """Refuse an option unless it is unset, false or has the allowed value.

    Args:
        args: fairseq's arguments.
        name: the option.
        reason: why it is refused.
        allowed: a value that is not refused; None or false if there is none.
        what: what the option cannot be combined with.

    Raises:
        SharingError: with the flag, its value, the reason and the allowed value.
    """
    value = getattr(args, name, None)
    if value and value != allowed:
        raise SharingError(
            f"{flag_of(name)} {joined(value)} cannot be combined with {what}: {reason}; "
            f"allowed: {allowed or 'leave it out'}"
        )
