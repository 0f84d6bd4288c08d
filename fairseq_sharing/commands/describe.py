"""Show what an experiment will train, before it does: its layer map, parameters, memory and operations."""

from __future__ import annotations

import argparse
from pathlib import Path

from fairseq_sharing.finite import finite_number

HELP = "show an experiment's layer map, parameters, memory and operations"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``describe``."""
    parser.add_argument("config", type=Path, help="an experiment, as in configs/multi30k/cycle_rev.yaml")
    parser.add_argument("overrides", nargs="*", help="changes to it, as in train.unique_layers=3")
    parser.add_argument("--data", type=Path, metavar="DIR", help="data directory, for its dictionary")
    parser.add_argument(
        "--vocabulary", type=int, metavar="SIZE", help="number of symbols, where no data is prepared yet"
    )
    parser.add_argument(
        "--length",
        type=int,
        default=25,
        help="source and target tokens of the sentence whose operations are counted, and of those of a batch",
    )
    parser.add_argument(
        "--memory", type=finite_number, default=80, metavar="GB", help="of a device, for the longest batch that fits it"
    )
    parser.add_argument("--device", default="cuda", help="cuda or cpu: whose memory is estimated; neither is needed")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the layer maps into an SVG file")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> None:
    """Describe the experiment beside vanilla models of N and of M layers."""
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
