"""The command ``fairseq-sharing``: one file a subcommand, imported only when it is called."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys

from fairseq_sharing.errors import SharingError

# In the order of the work. The help of each is its module's HELP.
COMMANDS = (
    *("describe", "prepare", "train", "average", "evaluate", "export", "untie", "translate", "report", "table"),
    "flags",
)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Tells defaults, where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False, []) else super()._get_help_string(action)


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
            formatter_class=_HelpFormatter,
        )
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    args, more = parser.parse_known_args(argv)
    # argparse takes no further positional words after an option: key=value changes may stand anywhere all the same.
    if any(word.startswith("-") or "=" not in word for word in more) or (more and not hasattr(args, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if more:
        args.overrides = [*args.overrides, *more]
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
