"""The ``fairseq-sharing`` command: one module per subcommand, with heavy imports deferred to ``run``."""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import os
import sys
from importlib import metadata
from typing import NoReturn

from fairseq_sharing.errors import SharingError
from fairseq_sharing.interruption import Interruption, interruptible
from fairseq_sharing.terminal import LogFormatter, one_line

# In the order of a typical workflow. The help of each is its module's HELP.
COMMANDS = (
    *("describe", "match", "prepare", "train", "average", "evaluate", "export", "card", "tie", "untie", "translate"),
    *("distill", "autodepth"),
    *("score", "report", "power", "calibrate"),
    *("study", "list", "clean", "flags"),
)
MIN_COLUMNS = 20


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


class _Parser(argparse.ArgumentParser):
    """A parser that prints an error as one line, like every other error of the command."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit."""
        self.exit(2, f"{self.prog}: error: {one_line(message)}\n")


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        argv: the command-line arguments; those of the process if None.

    Returns:
        The exit status: 0 on success, 2 for bad input and for files that cannot be read or written (reported in one
        line on stderr), 130 if interrupted, 143 if terminated.
    """
    _adapt_to_terminal()
    # fairseq and sacrebleu set the root logger to INFO on import; keep their messages out of this command's output.
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    program = "fairseq-sharing"
    try:
        with interruptible():
            args = _parse(argv)
            program += f" {args.command}"
            args.run(args)
            sys.stdout.flush()
    except SharingError as error:
        return _fail(program, error)
    except BrokenPipeError:
        # The reader closed the pipe. Discard buffered output, which Python would flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # the status of a program killed by SIGPIPE
    except OSError as error:
        return _fail(program, explain(error))
    except KeyboardInterrupt as error:
        what = "terminated" if isinstance(error, Interruption) else "interrupted"
        print(f"{program}: {what}; re-run the command to resume", file=sys.stderr)
        return error.status if isinstance(error, Interruption) else 130
    return 0


def explain(error: OSError) -> str:
    """Describe an error of the system: the paths and the reason."""
    names = [str(name) for name in (error.filename, error.filename2) if name is not None and not isinstance(name, int)]
    reason = error.strerror or str(error) or type(error).__name__
    return ": ".join([" -> ".join(names), reason] if names else [reason])


def _fail(program: str, error: object) -> int:
    print(f"{program}: error: {one_line(error)}", file=sys.stderr)
    return 2


def _adapt_to_terminal() -> None:
    """Make any width and encoding of the terminal usable: rich fails at COLUMNS=0, and ASCII has no ± or °."""
    if not os.environ.get("COLUMNS", "80").isdecimal() or int(os.environ.get("COLUMNS", "80")) < MIN_COLUMNS:
        del os.environ["COLUMNS"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog="fairseq-sharing",
        description="Share parameters across the layers of fairseq Transformers: prepare, train, evaluate, compare.",
    )
    parser.add_argument("--version", action=_PrintVersions, nargs=0, help="print versions and exit")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"fairseq_sharing.commands.{name}")
        subparser = subparsers.add_parser(
            name, help=module.HELP, description=module.__doc__, formatter_class=_HelpFormatter
        )
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] not in subparsers.choices:
        return parser.parse_args(words)
    # Arguments and options in any order, which a parser with subcommands does not support.
    args = subparsers.choices[words[0]].parse_intermixed_args(words[1:])
    args.command = words[0]
    return args
