"""Plan a comparison: how many seeds detect a difference, and what a number of seeds detects."""

from __future__ import annotations

import argparse

from fairseq_sharing.finite import positive_number, whole_number
from fairseq_sharing.terminal import Console, say

HELP = "how many seeds a comparison of two rows needs"
_SEEDS = (2, 3, 4, 5, 8, 10, 12)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``power``."""
    parser.add_argument("--sd", type=positive_number, required=True, help="standard deviation between seeds of one row")
    parser.add_argument(
        "--difference", type=positive_number, default=0.5, help="difference between the means of two rows to detect"
    )
    parser.add_argument(
        "--seeds",
        type=whole_number(2),
        nargs="+",
        default=list(_SEEDS),
        metavar="N",
        help="numbers of seeds per row to show",
    )


def run(args: argparse.Namespace) -> None:
    """Print the required number of seeds, and the power of each number."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from fairseq_sharing.reporting.power import half_width, least_difference, power, required_seeds

    needed = required_seeds(args.sd, args.difference)
    output = Console()
    say(
        output,
        f"Seeds per row to detect a difference of {args.difference:g} at a standard deviation of {args.sd:g} with 80% "
        f"power: {'more than 10,000,000' if needed is None else f'{needed:,}'}",
    )
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for header in (
        "Seeds\nper row",
        "Half-width of the\n95% interval",
        f"Power to detect\n{args.difference:g}",
        "Difference detected\nwith 80% power",
    ):
        table.add_column(header, justify="right")
    for seeds in args.seeds:
        table.add_row(
            f"{seeds:,}",
            f"{half_width(args.sd, seeds):.2f}",
            f"{power(args.sd, args.difference, seeds):.0%}",
            f"{least_difference(args.sd, seeds):.2f}",
        )
    output.print(table)
    output.print("Two-sided t test at 5% of two rows with equal numbers of seeds.", highlight=False)
