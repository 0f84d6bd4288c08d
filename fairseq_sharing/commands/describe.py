"""Print the layer map, parameter counts, memory and MACs of an experiment, without training it."""

from __future__ import annotations

import argparse
from pathlib import Path

from fairseq_sharing.commands.experiment_flags import add_dictionary_flags, add_experiment
from fairseq_sharing.finite import positive_number, whole_number

HELP = "print the layer map, parameter counts, memory and MACs of an experiment"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``describe``."""
    add_experiment(parser, "train.unique_layers=3")
    add_dictionary_flags(parser)
    parser.add_argument(
        "--length",
        type=whole_number(most=1_000_000),
        default=25,
        help="source and target tokens per sentence, for MACs and memory",
    )
    parser.add_argument(
        "--memory",
        type=positive_number,
        metavar="GB",
        help="device memory: also estimate the memory of training and the longest batch that fits",
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
