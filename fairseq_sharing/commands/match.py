"""Find the width or depth at which an experiment has the parameters, MACs or training time of another one."""

from __future__ import annotations

import argparse
from pathlib import Path

from fairseq_sharing.commands.experiment_flags import add_dictionary_flags, add_experiment
from fairseq_sharing.finite import whole_number

HELP = "find the width or depth that gives an experiment the budget of another one"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``match``."""
    add_experiment(parser, "train.unique_layers=3")
    parser.add_argument(
        "--to",
        nargs="+",
        required=True,
        metavar=("CONFIG", "KEY=VALUE"),
        help="the experiment with the wanted budget, in the same form",
    )
    parser.add_argument("--by", default="parameters", help="the budget: parameters, macs or time")
    parser.add_argument(
        "--solve",
        required=True,
        metavar="FIELD[,FIELD]",
        help="keys of train that get the value, e.g. encoder_ffn_embed_dim, encoder_layers or embed_dim (both stacks)",
    )
    parser.add_argument(
        "--multiple-of",
        type=whole_number(),
        default=1,
        metavar="K",
        help="try multiples of K only; an embedding width is always a multiple of the number of heads",
    )
    parser.add_argument(
        "--nearest",
        action="store_true",
        help="choose the nearest value, which may be above the budget, instead of the largest value within it",
    )
    add_dictionary_flags(parser)
    parser.add_argument(
        "--length",
        type=whole_number(most=100_000),
        default=25,
        help="source and target tokens per sentence, for MACs and time",
    )
    parser.add_argument(
        "--runs", type=whole_number(most=1000), default=5, help="timed updates of each model, for --by time"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda: device of the timed updates")


def run(args: argparse.Namespace) -> None:
    """Print both neighbors of the budget and the overrides to use."""
    from fairseq_sharing.description.print_match import print_match

    config, *overrides = args.to
    print_match(
        (args.config, args.overrides),
        (Path(config), overrides),
        by=args.by,
        solve=args.solve.split(","),
        multiple_of=args.multiple_of,
        nearest=args.nearest,
        data=args.data,
        vocabulary=args.vocabulary,
        length=args.length,
        runs=args.runs,
        device=args.device,
    )
