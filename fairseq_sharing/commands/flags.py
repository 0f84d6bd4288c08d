"""List the flags that this package adds to fairseq-train, which fairseq's own help does not show."""

from __future__ import annotations

import argparse

HELP = "list the flags of this package's models, criterions, optimizers and schedules"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``flags``."""
    parser.add_argument(
        "arch",
        nargs="?",
        default="all",
        metavar="ARCH",
        help="an architecture, to list the flags that apply to it with its defaults",
    )
    parser.add_argument("--markdown", action="store_true", help="print the flags as Markdown, as in docs/flags.md")


def run(args: argparse.Namespace) -> None:
    """Print the flags."""
    from fairseq_sharing.flag_list import as_markdown, as_text, list_flags

    groups = list_flags(args.arch)
    print((as_markdown if args.markdown else as_text)(groups), end="")
