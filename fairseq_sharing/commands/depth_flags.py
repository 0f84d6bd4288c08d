"""Flags that choose the depth of a model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from fairseq_sharing.depths.settings import AUTO, REFUSED_AUTO, DepthRequest
from fairseq_sharing.errors import SharingError
from fairseq_sharing.finite import whole_number
from fairseq_sharing.options import flag_of

NAMES = ("depth", "encoder_depth", "decoder_depth", "force_depth")


def add_depth_flags(parser: argparse.ArgumentParser | argparse._ArgumentGroup, per_sentence: bool = False) -> None:
    """Add the flags of a depth to a command.

    Args:
        parser: the parser of the command.
        per_sentence: whether the command can use a depth per sentence.
    """
    auto = f", or {AUTO}: a depth per sentence, chosen by the classifier of autodepth" if per_sentence else ""
    for flag, kind, what in (
        ("--depth", _depth, f"both stacks, of a model trained for several depths{auto}; all layers if not given"),
        ("--encoder-depth", whole_number(), "the encoder; --depth if not given"),
        ("--decoder-depth", whole_number(), "the decoder; --depth if not given"),
    ):
        parser.add_argument(flag, type=kind, metavar="N", help=f"run N layers of {what}", default=argparse.SUPPRESS)
    parser.add_argument(
        "--force-depth",
        action="store_true",
        help="allow a depth that the model was not trained for",
        default=argparse.SUPPRESS,
    )


def depth_request(args: argparse.Namespace, per_sentence: bool = False) -> DepthRequest:
    """Return the depth that the flags ask for.

    Args:
        args: the parsed flags.
        per_sentence: whether the command can use a depth per sentence.

    Raises:
        SharingError: ``--force-depth`` without a depth, or ``--depth auto`` with other flags or in another command.
    """
    given = vars(args)
    if given.get("depth") == AUTO:
        if not per_sentence:
            raise SharingError(REFUSED_AUTO)
        for name in NAMES[1:]:
            if name in given:
                raise SharingError(f"{flag_of(name)}: not allowed with --depth {AUTO}, which chooses among all depths")
        return DepthRequest(per_sentence=True)
    request = DepthRequest(
        given.get("depth"), given.get("encoder_depth"), given.get("decoder_depth"), given.get("force_depth", False)
    )
    if request.force and not request.given:
        raise SharingError("--force-depth: requires --depth, --encoder-depth or --decoder-depth")
    return request


def _depth(text: str) -> int | str:
    return text if text == AUTO else whole_number()(text)


def shown_counts(chosen: Mapping[str, int]) -> str:
    """Format how many sentences took each depth."""
    return ", ".join(f"{depth} {count:,}" for depth, count in chosen.items())
