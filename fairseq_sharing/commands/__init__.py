"""The command ``fairseq-sharing``: one file a subcommand, imported only when it is called."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys

from fairseq_sharing.errors import SharingError

# In the order of the work. The help of each is its module's HELP.
COMMANDS = ("describe", "prepare", "train", "average", "evaluate", "export", "report")


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        argv: the words after the program's name; those of the process when None.

    Returns:
        The exit status: 0 when done, 2 for bad input (told in one line on standard error), 130 when interrupted.
    """
    parser = argparse.ArgumentParser(
        prog="fairseq-sharing",
        description="Share parameters across the layers of fairseq Transformers: prepare, train, evaluate, compare.",
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"fairseq_sharing.commands.{name}")
        subparser = subparsers.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    # fairseq and sacrebleu would set the root logger to INFO on import and tell what is none of this command's matter.
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        args.run(args)
    except SharingError as error:
        print(f"fairseq-sharing {args.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"fairseq-sharing {args.command}: interrupted; start it again to go on", file=sys.stderr)
        return 130
    return 0
