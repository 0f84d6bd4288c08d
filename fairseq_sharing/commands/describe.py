"""Print the layer map, parameter counts, memory and MACs of an experiment, without training it."""

from __future__ import annotations

import argparse
from pathlib import Path

from fairseq_sharing.finite import positive_number, whole_number

HELP = "print the layer map, parameter counts, memory and MACs of an experiment"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``describe``."""
    parser.add_argument(
        "config", type=Path, metavar="CONFIG", help="a study, e.g. toy, or the YAML file of an experiment"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="row=NAME of a study, and overrides, e.g. train.unique_layers=3",
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="prepared data directory, for its dictionary size")
    parser.add_argument(
        "--vocabulary", type=whole_number(), metavar="SIZE", help="dictionary size, if no data is prepared yet"
    )
    parser.add_argument(
        "--length",
        type=whole_number(most=1_000_000),
        default=25,
        help="source and target tokens per sentence, for MACs and memory",
    )
    parser.add_argument(
        "--memory",
        type=positive_number,
        default=80,
        metavar="GB",
        help="device memory, to estimate the longest batch that fits",
    )
    parser.add_argument(
        "--device", default="cuda", help="cuda or cpu: device type of the memory estimate; it need not be available"
    )
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the layer maps to an SVG file")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")


def run(args: argparse.Namespace) -> None:
    """Describe the experiment, with vanilla models of N and M layers for comparison."""
    from fairseq_sharing.description.describe import describe

    describe(
        args.config,
        args.overrides,
        data=args.data,
        vocabulary=args.vocabulary,
        length=args.length,
        memory=args.memory,
        device=args.device,
        svg=args.svg,
        as_json=args.json,
    )
