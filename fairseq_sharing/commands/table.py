"""Run a whole study: prepare the data, train every row with every seed, evaluate and report."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from fairseq_sharing.finite import finite_number

if TYPE_CHECKING:
    from rich.console import Console

    from fairseq_sharing.studies.table import Table

HELP = "run a whole study: prepare, train all rows and seeds, evaluate, report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``table``."""
    parser.add_argument("study", metavar="STUDY", help="a study, e.g. multi30k, or its YAML file")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="overrides for every row, e.g. train.max_epoch=60"
    )
    parser.add_argument("--rows", nargs="+", default=[], metavar="ROW", help="rows to run; all if not given")
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=[],
        metavar="SEED",
        help="seeds of every row (default: those of the study)",
    )
    parser.add_argument(
        "--gpus", type=int, metavar="N", help="GPUs per machine for each run, or CPU processes if it has no GPU"
    )
    parser.add_argument("--nodes", type=int, default=1, metavar="K", help="machines per run, with --slurm")
    parser.add_argument(
        "--mirror", metavar="DIR_OR_URL", help="directory or URL of the corpus files, instead of their own servers"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="directory for the results and the report; runs/<study>/report if not given",
    )
    parser.add_argument(
        "--slurm",
        metavar="FLAGS",
        nargs="?",
        const="",
        help="submit one array job that trains all runs, with these sbatch flags; needs --gpus. When the job has "
        "ended, re-run the command without --slurm",
    )
    parser.add_argument(
        "--tflops",
        type=finite_number,
        metavar="X",
        help="sustained TFLOP/s per GPU, for the estimate; 40 if not given",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print every command and the estimated GPU hours and disk space"
    )


def run(args: argparse.Namespace) -> None:
    """Run the study, submit it to Slurm, or print its commands and cost."""
    from fairseq_sharing.console import make_console
    from fairseq_sharing.errors import SharingError
    from fairseq_sharing.experiment.config import find_study
    from fairseq_sharing.studies import table as tables

    if args.nodes > 1 and args.slurm is None:
        raise SharingError(f"--nodes {args.nodes}: needs --slurm; without Slurm, run scripts/train.sh on each machine")
    if args.slurm is not None and not args.gpus:
        raise SharingError("--slurm: needs --gpus, the number of GPUs per machine for each run")
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
    console = make_console(stderr=True)
    if args.dry_run:
        _print_plan(table, args.slurm, args.tflops, make_console())
    elif args.slurm is not None:
        job = tables.submit(table, args.slurm, console)
        console.print(
            f"submitted as job {job}, one task per run; when it has ended, re-run the command without --slurm to "
            "evaluate and report",
            highlight=False,
            soft_wrap=True,
        )
    else:
        tables.make(table, console)


def _print_plan(table: Table, slurm: str | None, tflops: float | None, console: Console) -> None:
    """Print every command and the estimated cost."""
    from fairseq_sharing.studies import cost as estimate
    from fairseq_sharing.studies import table as tables

    if slurm is not None:
        file = tables.job_file(table)
        tables.show(table.prepare(), console)
        tables.show(table.submission(file, slurm), console)
        console.print(f"contents of {file}:", highlight=False, soft_wrap=True)
        for line in table.job_lines():
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
        console.print("after the job has ended:")
    for stage in table.stages():
        tables.show(stage, console)
    rate, runs = tflops or estimate.TFLOPS, Counter(run.row for run in table.runs())
    console.print(
        f"\nestimate per run, assuming {rate:g} TFLOP/s per GPU; disk space of the kept checkpoints:",
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
        f"  total of {runs.total()} runs: {hours:,.1f} GPU hours, {disk / 1e9:,.0f} GB including the data",
        highlight=False,
        soft_wrap=True,
    )
