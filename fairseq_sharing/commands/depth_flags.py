"""Flags that choose the depth of a model."""

from __future__ import annotations

import argparse

from fairseq_sharing.depths.settings import DepthRequest
from fairseq_sharing.errors import SharingError
from fairseq_sharing.finite import whole_number

NAMES = ("depth", "encoder_depth", "decoder_depth", "force_depth")


def add_depth_flags(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the flags of a depth to a command."""
    for flag, what in (
        ("--depth", "both stacks, of a model trained for several depths; all layers if not given"),
        ("--encoder-depth", "the encoder; --depth if not given"),
        ("--decoder-depth", "the decoder; --depth if not given"),
    ):
        parser.add_argument(
            flag, type=whole_number(), metavar="N", help=f"run N layers of {what}", default=argparse.SUPPRESS
        )
    parser.add_argument(
        "--force-depth",
        action="store_true",
        help="allow a depth that the model was not trained for",
        default=argparse.SUPPRESS,
    )


def depth_request(args: argparse.Namespace) -> DepthRequest:
    """Return the depth that the flags ask for.

    Raises:
        SharingError: ``--force-depth`` without a depth.
    """
    given = vars(args)
    request = DepthRequest(
        given.get("depth"), given.get("encoder_depth"), given.get("decoder_depth"), given.get("force_depth", False)
    )
    if request.force and not request.given:
        raise SharingError("--force-depth: requires --depth, --encoder-depth or --decoder-depth")
    return request
