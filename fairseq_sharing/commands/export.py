"""Write a trained model for other programs: --materialise gives a checkpoint of stock fairseq's transformer."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "write a model for stock fairseq"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``export``."""
    parser.add_argument("checkpoint", type=Path, help="a checkpoint of transformer_sharing")
    parser.add_argument(
        "--materialise",
        action="store_true",
        required=True,
        help="write all N layers, under fairseq's own names and in plain dicts: fairseq-generate needs no --user-dir",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the file to write")


def run(args: argparse.Namespace) -> None:
    """Write the exported model."""
    from rich.console import Console

    from fairseq_sharing.checkpoint import load_checkpoint, materialise, save_atomically

    save_atomically(materialise(load_checkpoint(args.checkpoint)), args.output)
    size = args.output.stat().st_size
    Console(highlight=False, soft_wrap=True).print(
        f"{args.output}: {size:,} bytes; translate with: fairseq-generate DATA --path {args.output}"
    )
