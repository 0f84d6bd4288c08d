"""Untie a training checkpoint: give each layer its own parameters and optimizer state, to resume without sharing."""

from __future__ import annotations

import argparse
from pathlib import Path

from fairseq_sharing.errors import SharingError
from fairseq_sharing.terminal import Console

HELP = "give every layer of a training checkpoint its own parameters"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``untie``."""
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="training checkpoint of a model with shared layers"
    )
    parser.add_argument(
        "--merge",
        action="store_true",
        help="also merge the adapters and factors of each depth into its matrices; without it, they are kept",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="checkpoint to write")


def run(args: argparse.Namespace) -> None:
    """Write the untied checkpoint."""
    from fairseq_sharing.checkpoints.files import load_checkpoint, save_atomically
    from fairseq_sharing.files import check_output_file, refuse_input
    from fairseq_sharing.schedules.at_rest import untie

    check_output_file(args.output, "--output")
    refuse_input(args.output, "--output", [args.checkpoint])
    checkpoint = load_checkpoint(args.checkpoint)
    try:
        untied = untie(checkpoint, args.merge)
    except SharingError as error:
        raise SharingError(f"{args.checkpoint}: {error}") from error
    save_atomically(untied, args.output)
    Console(highlight=False, soft_wrap=True).print(
        f"{args.output}: {args.output.stat().st_size:,} bytes; resume with: "
        f"fairseq-train DATA --sharing none --restore-file {args.output} and the other training flags"
    )
