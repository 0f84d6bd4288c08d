"""Flags that choose an experiment and the size of its dictionary."""

from __future__ import annotations

import argparse
from pathlib import Path

from fairseq_sharing.finite import whole_number


def add_experiment(parser: argparse.ArgumentParser, example: str) -> None:
    """Add the configuration and its overrides to a command.

    Args:
        parser: the command's parser.
        example: an override, for the help.
    """
    parser.add_argument(
        "config", type=Path, metavar="CONFIG", help="a study, e.g. toy, or the YAML file of an experiment"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help=f"row=NAME of a study, and overrides, e.g. {example}"
    )


def add_dictionary_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that give the size of the dictionary to a command that does not train."""
    parser.add_argument("--data", type=Path, metavar="DIR", help="prepared data directory, for its dictionary size")
    parser.add_argument(
        "--vocabulary", type=whole_number(), metavar="SIZE", help="dictionary size, if no data is prepared yet"
    )
