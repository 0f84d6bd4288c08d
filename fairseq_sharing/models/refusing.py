"""Refuse options that a model cannot be combined with."""

from argparse import Namespace

from fairseq_sharing.errors import SharingError
from fairseq_sharing.options import flag_of


def refuse(args: Namespace, name: str, reason: str, allowed) -> None:
    """Refuse an option unless it is unset, false or has the allowed value.

    Raises:
        SharingError: with the flag, its value, the reason and the allowed value.
    """
    value = getattr(args, name, None)
    if value not in (None, allowed) and value:
        value = ",".join(map(str, value)) if isinstance(value, list) else value
        raise SharingError(
            f"{flag_of(name)} {value} cannot be combined with this model: {reason}; "
            + (f"allowed: {allowed}" if allowed else "allowed: leave it out")
        )
