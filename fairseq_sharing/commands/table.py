"""Make a whole table: prepare the data, train every row with every seed, evaluate and report."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from fairseq_sharing.finite import finite_number

if TYPE_CHECKING:
    from rich.console import Console

    from fairseq_sharing.studies.table import Table

HELP = "make a whole table of a paper: prepare, train all rows and seeds, evaluate, report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("study", metavar="STUDY", help="a study, for example multi30k, or its YAML file")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="changes to every row, as in train.max_epoch=60"
    )
    parser.add_argument("--rows", nargs="+", default=[], metavar="ROW", help="some of its rows; all if not given")
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=[],
        metavar="SEED",
        help="seeds of every row (default: the study's)",
    )
    parser.add_argument(
        "--gpus", type=int, metavar="N", help="GPUs (CPU processes without one) of a training's machine"
    )
    parser.add_argument("--nodes", type=int, default=1, metavar="K", help="machines of a training, with --slurm")
    parser.add_argument(
        "--mirror", metavar="DIR_OR_URL", help="where the corpus's files are, if not on their own servers"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the results and the report; runs/<study>/report if not given",
    )
    parser.add_argument(
        "--slurm",
        metavar="FLAGS",
        nargs="?",
        const="",
        help="submit one array job that trains all runs, with these flags of sbatch and --gpus; then start it again "
        "without",
    )
    parser.add_argument(
        "--tflops",
        type=finite_number,
        metavar="X",
        help="what a GPU sustains, TFLOP/s, for the estimate; 40 if not given",
    )
    parser.add_argument("--dry-run", action="store_true", help="print every command, the estimated hours and disk")


def run(args: argparse.Namespace) -> None:
    """Make the table, submit it, or say what would be done."""
    from rich.console import Console

    from fairseq_sharing.errors import SharingError
    from fairseq_sharing.experiment.config import find_study
    from fairseq_sharing.studies import table as tables

    if args.nodes > 1 and args.slurm is None:
        raise SharingError(f"--nodes {args.nodes} needs --slurm; without it start scripts/train.sh on each machine")
    if args.slurm is not None and not args.gpus:
        raise SharingError("--slurm needs --gpus: how many GPUs of a machine each training gets")
    table = tables.Table(
        study=find_study(args.study),
        config=args.study,
        rows=tuple(args.rows),
        seeds=tuple(args.seeds),
        overrides=tuple(args.overrides),
        devices=args.gpus,
        nodes=args.nodes,
        mirror=args.mirror,
        out=args.out,
    )
    console = Console(stderr=True)
    if args.dry_run:
        _say(table, args.slurm, args.tflops, Console())
    elif args.slurm is not None:
        job = tables.submit(table, args.slurm, console)
        console.print(
            f"submitted as job {job}, a task a run; when it has ended, the same command without --slurm evaluates and "
            "reports",
            highlight=False,
            soft_wrap=True,
        )
    else:
        tables.make(table, console)


def _say(table: Table, slurm: str | None, tflops: float | None, console: Console) -> None:
    """Print every command, and what they cost."""
    from fairseq_sharing.studies import cost as estimate
    from fairseq_sharing.studies import table as tables

    if slurm is not None:
        file = tables.job_file(table)
        tables.show(table.prepare(), console)
        tables.show(table.submission(file, slurm), console)
        console.print(f"with these lines in {file}:", highlight=False, soft_wrap=True)
        for line in table.job_lines():
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
        console.print("and, when the job has ended:")
    for stage in table.stages():
        tables.show(stage, console)
    rate, runs = tflops or estimate.TFLOPS, Counter(run.row for run in table.runs())
    console.print(
        f"\nestimated, at an assumed {rate:g} TFLOP/s a GPU, with the disk of the checkpoints kept, a run:",
        highlight=False,
        soft_wrap=True,
    )
    hours, disk = 0.0, estimate.data_bytes(table.study)
    for row in estimate.estimate_rows(table):
        each = row.device_hours(rate)
        hours, disk = hours + runs[row.run] * each, disk + runs[row.run] * row.disk
        console.print(
            f"  {row.run}: {row.parameters / 1e6:,.1f}M parameters, {row.tokens / 1e6:,.0f}M target tokens,"
            f" {each:,.2f} GPU hours, {row.disk / 1e9:,.1f} GB",
            highlight=False,
            soft_wrap=True,
        )
    console.print(
        f"  in total, {runs.total()} runs: {hours:,.1f} GPU hours, {disk / 1e9:,.0f} GB with the data",
        highlight=False,
        soft_wrap=True,
    )
