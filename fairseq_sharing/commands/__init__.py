"""The ``fairseq-sharing`` command: one module per subcommand, with heavy imports deferred to ``run``."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from importlib import metadata

from fairseq_sharing.errors import SharingError

# In the order of a typical workflow. The help of each is its module's HELP.
COMMANDS = (
    *("describe", "prepare", "train", "average", "evaluate", "export", "untie", "translate"),
    *("report", "power", "calibrate"),
    *("study", "list", "clean", "flags"),
)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Append the default to an option's help, if it has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False, []) else super()._get_help_string(action)


class _PrintVersions(argparse.Action):
    """Print the versions of this package and of those that determine its results, one per line."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        for name in ("fairseq-sharing", "fairseq-fixed", "torch", "sacrebleu"):
            print(name, metadata.version(name))
        parser.exit()


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        argv: the command-line arguments; those of the process if None.

    Returns:
        The exit status: 0 on success, 2 for bad input (reported in one line on stderr), 130 if interrupted.
    """
    parser = argparse.ArgumentParser(
        prog="fairseq-sharing",
        description="Share parameters across the layers of fairseq Transformers: prepare, train, evaluate, compare.",
    )
    parser.add_argument("--version", action=_PrintVersions, nargs=0, help="print versions and exit")
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
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in subparsers.choices:
        # Accept options and positional arguments in any order, which argparse does not do for subcommands.
        args = subparsers.choices[words[0]].parse_intermixed_args(words[1:], argparse.Namespace(command=words[0]))
    else:
        args = parser.parse_args(words)
    # fairseq and sacrebleu set the root logger to INFO on import; keep their messages out of this command's output.
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        args.run(args)
    except SharingError as error:
        print(f"fairseq-sharing {args.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"fairseq-sharing {args.command}: interrupted; re-run the command to resume", file=sys.stderr)
        return 130
    return 0
