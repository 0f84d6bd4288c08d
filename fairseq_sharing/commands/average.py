"""Average the weights of checkpoints into one model. Tensors that are tied in all of them stay tied."""

from __future__ import annotations

import argparse
from pathlib import Path

from fairseq_sharing.errors import SharingError
from fairseq_sharing.finite import whole_number
from fairseq_sharing.terminal import Console

HELP = "average checkpoints into one model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``average``."""
    parser.add_argument(
        "inputs",
        nargs="+",
        type=Path,
        metavar="INPUT",
        help="checkpoint files, or one checkpoint directory with --last",
    )
    parser.add_argument(
        "--last",
        type=whole_number(),
        metavar="K",
        default=None,
        help="average the K newest epoch checkpoints (checkpointN.pt) of the directory",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="checkpoint to write")


def run(args: argparse.Namespace) -> None:
    """Average the given checkpoints, or the last K epochs of a directory."""
    from fairseq_sharing.checkpoints.averaging import average_checkpoints
    from fairseq_sharing.checkpoints.choose import last_epochs
    from fairseq_sharing.files import check_output_file, refuse_input

    check_output_file(args.output, "--output")
    if args.last is not None:
        if len(args.inputs) != 1 or not args.inputs[0].is_dir():
            raise SharingError(
                f"--last {args.last}: takes one checkpoint directory, got {' '.join(map(str, args.inputs))}"
            )
        args.inputs = last_epochs(args.inputs[0], args.last)
    refuse_input(args.output, "--output", args.inputs)
    average_checkpoints(args.inputs, args.output)
    size = args.output.stat().st_size
    Console(highlight=False, soft_wrap=True).print(
        f"{args.output}: mean of {', '.join(path.name for path in args.inputs)} ({size:,} bytes)"
    )
