"""Check how often report finds a difference between equal methods: in 5% of studies, by simulation or on split rows."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fairseq_sharing.errors import SharingError
from fairseq_sharing.finite import finite_number
from fairseq_sharing.terminal import Console

if TYPE_CHECKING:
    from fairseq_sharing.reporting.conclusions import Conclusions

HELP = "check the error rate of report's comparisons"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``calibrate``."""
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        metavar="DIR",
        help="directory of result files: simulate its numbers of rows and seeds and its standard deviation",
    )
    parser.add_argument("--row", help="row of DIR with eight or more seeds: also compare random halves of its runs")
    parser.add_argument(
        "--sd", type=finite_number, help="standard deviation between seeds; default: that of DIR, or 0.4"
    )
    parser.add_argument("--seeds", type=int, default=5, help="seeds per simulated row, without DIR")
    parser.add_argument("--rows", type=int, default=3, help="simulated rows, one of them the baseline, without DIR")
    parser.add_argument("--draws", type=int, default=2000, help="number of simulated studies")
    parser.add_argument(
        "--segment-noise",
        type=finite_number,
        default=0.25,
        help="standard deviation of a score over test sets of equal size, which a paired test of two files measures",
    )


def run(args: argparse.Namespace) -> None:
    """Print the rates of false conclusions; fail if those of the report differ from 5%."""
    from fairseq_sharing.reporting.calibration import TOLERANCE, is_calibrated, simulate

    for flag, value, least in (("--seeds", args.seeds, 2), ("--rows", args.rows, 2), ("--draws", args.draws, 100)):
        if value < least:
            raise SharingError(f"{flag}: {value}; allowed: whole numbers from {least}")
    for flag, value in (("--sd", args.sd), ("--segment-noise", args.segment_noise)):
        if value is not None and value <= 0:
            raise SharingError(f"{flag}: {value:g}; allowed: a number above 0")
    if args.row and not args.folder:
        raise SharingError(f"--row {args.row}: requires DIR, a directory of result files")
    sizes, deviation = [args.seeds] * args.rows, args.sd or 0.4
    output = Console(highlight=False, soft_wrap=True)
    if args.folder:
        conclusions = _conclusions(args.folder)
        sizes, measured = _layout(conclusions, args.folder)
        deviation = args.sd or measured
        if args.row:
            output.print(_split(conclusions, args.row, args.folder))
    rates = simulate(sizes, deviation, args.segment_noise, args.draws)
    output.print(
        f"{args.draws:,} simulated studies of equal methods: {len(sizes)} rows with "
        f"{', '.join(map(str, sizes if len(set(sizes)) > 1 else sizes[:1]))} seeds, standard deviation "
        f"{deviation:.2f}. Nominal rate of false conclusions: 5%."
    )
    for name, rate in (
        ("report, any comparison of a study (Dunnett)", rates.report),
        ("report, a single 95% interval excludes 0", 1 - rates.coverage),
        ("report --variance separate, any comparison (Welch, Holm)", rates.welch),
        ("one seed per method, paired test over sentences", rates.single_seed),
    ):
        output.print(f"  {rate:6.1%}  {name}")
    if args.draws >= 2000 and not (is_calibrated(rates.report) and is_calibrated(1 - rates.coverage)):
        raise SharingError(f"rate of false conclusions of report: {rates.report:.1%}; allowed: 5% ± {TOLERANCE:.1%}")


def _conclusions(folder: Path) -> Conclusions:
    from fairseq_sharing.reporting.comparison_plan import make_plan
    from fairseq_sharing.reporting.conclusions import conclude
    from fairseq_sharing.reporting.results import read_rows

    rows = read_rows(folder)
    return conclude(rows, make_plan(folder, rows, {}))


def _layout(conclusions: Conclusions, folder: Path) -> tuple[list[int], float]:
    """Return the numbers of runs of the rows with several, the baseline's first, and the pooled deviation."""

    sizes = {run: len(scores) for run, scores in conclusions.runs.items() if len(scores) > 1}
    pooled = conclusions.pooled
    if len(sizes) < 2 or pooled is None or not pooled.deviation:
        raise SharingError(
            f"{folder}: fewer than two rows with several different runs; allowed: a study of two or more"
        )
    first = sorted(sizes, key=lambda run: run != conclusions.plan.baseline)
    return [sizes[run] for run in first], pooled.deviation


def _split(conclusions: Conclusions, row: str, folder: Path) -> str:
    from fairseq_sharing.reporting.calibration import LEAST_RUNS, split_rates

    runs = conclusions.runs.get(row)
    if runs is None:
        raise SharingError(f"--row: no row {row!r} in {folder}; allowed: {', '.join(conclusions.runs)}")
    if len(runs) < LEAST_RUNS:
        raise SharingError(f"--row: {row} has {len(runs)} runs; allowed: a row with {LEAST_RUNS} or more")
    pooled, welch = split_rates(tuple(runs.values()))
    return (
        f"{len(runs)} runs of {row}, split into two groups in many ways: told apart in {pooled:.1%} of the splits by "
        f"report, in {welch:.1%} by Welch's test. An illustration: the splits are not independent."
    )
