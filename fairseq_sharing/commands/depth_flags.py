"""Flags that choose the depth of a model."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from fairseq_sharing.finite import whole_number

if TYPE_CHECKING:
    from fairseq_sharing.depths.settings import DepthRequest

NAMES = ("depth", "encoder_depth", "decoder_depth", "force_depth")


def add_depth_flags(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the flags of a depth to a command."""
    for flag, what in (
        ("--depth", "both stacks"),
        ("--encoder-depth", "the encoder"),
        ("--decoder-depth", "the decoder"),
    ):
        more = "; overrides --depth" if flag != "--depth" else ", of a model trained for several depths"
        parser.add_argument(
            flag,
            type=whole_number(),
            metavar="N",
            help=f"run N layers of {what}{more}; all layers if not given",
            default=argparse.SUPPRESS,
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
    from fairseq_sharing.depths.settings import DepthRequest
    from fairseq_sharing.errors import SharingError

    given = vars(args)
    request = DepthRequest(
        given.get("depth"), given.get("encoder_depth"), given.get("decoder_depth"), given.get("force_depth", False)
    )
    if request.force and not request.given:
        raise SharingError("--force-depth: requires --depth, --encoder-depth or --decoder-depth")
    return request
