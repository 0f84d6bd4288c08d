"""Write the model card of a run: README.md with the metadata of the Hugging Face Hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from fairseq_sharing.terminal import visible

HELP = "write the model card of a run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``card``."""
    parser.add_argument("run_directory", type=Path, metavar="RUN", help="run directory of train")
    parser.add_argument(
        "--license",
        metavar="ID",
        help="license of the model, such as cc-by-4.0; that of the data may restrict it; left out if not given",
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="prepared data directory, if it moved since training")
    parser.add_argument("--output", type=Path, metavar="FILE", help="file to write; standard output if not given")


def run(args: argparse.Namespace) -> None:
    """Write the card."""
    import shlex

    from fairseq_sharing.decoding.model_card import Usage, card_of_run
    from fairseq_sharing.files import check_output_file, write_text

    if args.output is not None:
        check_output_file(args.output, "--output")
    usage = Usage(
        "fairseq", "bash", [f"fairseq-sharing translate {shlex.quote(args.run_directory.resolve().name)} < INPUT"]
    )
    text = card_of_run(args.run_directory, usage, args.data, args.license)
    if args.output is None:
        print(visible(text), end="")
    else:
        write_text(args.output, text)
