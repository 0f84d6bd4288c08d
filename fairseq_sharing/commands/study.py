"""Run a study: prepare the data, train every row with every seed, evaluate and report."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from fairseq_sharing.errors import SharingError
from fairseq_sharing.finite import HUGE, positive_number, whole_number
from fairseq_sharing.terminal import Console, say

if TYPE_CHECKING:
    from rich.table import Table

    from fairseq_sharing.studies.plan import StudyPlan

HELP = "run a whole study, show its state, or estimate its cost"

_ACTIONS = {
    "run": "prepare, train, evaluate and report what is missing; re-run to resume",
    "status": "print the state of every run",
    "estimate": "print device hours and disk space",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``study``."""
    actions = "; ".join(f"{name}: {text}" for name, text in _ACTIONS.items())
    parser.add_argument("action", choices=_ACTIONS, metavar="|".join(_ACTIONS), help=actions)
    parser.add_argument("study", metavar="STUDY", help="a study, e.g. multi30k, or its YAML file")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="overrides for every row, e.g. train.max_epoch=60"
    )
    parser.add_argument("--rows", nargs="+", default=[], metavar="ROW", help="rows to run; all if not given")
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=whole_number(0),
        default=[],
        metavar="SEED",
        help="seeds of every row; the study's if not given",
    )
    parser.add_argument(
        "--jobs",
        type=_jobs,
        metavar="auto|N",
        help="runs at once. auto: one per CPU core as memory allows, one per GPU, or several per GPU with CUDA MPS. "
        "Each run gets an equal share of the cores",
    )
    parser.add_argument(
        "--budget",
        type=_seconds,
        metavar="TIME",
        help="stop before this time is over, e.g. 25m or 1h30m: trainings save checkpoints, finished runs are reported",
    )
    parser.add_argument(
        "--gpus",
        type=whole_number(most=1024),
        metavar="N",
        help="GPUs per machine for each run, or CPU processes without a GPU",
    )
    parser.add_argument(
        "--nodes", type=whole_number(most=100_000), default=1, metavar="K", help="machines per run, with --slurm"
    )
    parser.add_argument(
        "--mirror",
        type=_named,
        metavar="DIR_OR_URL",
        help="directory or URL of the corpus files, instead of the servers of the recipe",
    )
    parser.add_argument(
        "--out",
        type=lambda text: Path(_named(text)),
        metavar="DIR",
        help="directory for the results and the report; runs/<study>/report if not given",
    )
    parser.add_argument(
        "--slurm",
        metavar="FLAGS",
        nargs="?",
        const="",
        help="submit one array job that trains all runs, with these sbatch flags; on GPUs with --gpus, otherwise on "
        "CPU cores. When the job has ended, re-run the command without --slurm",
    )
    parser.add_argument(
        "--tflops",
        type=positive_number,
        metavar="X",
        help="sustained TFLOP/s per GPU, for the estimate; 40 if not given",
    )
    parser.add_argument("--dry-run", action="store_true", help="print every command and the estimated cost")


def run(args: argparse.Namespace) -> None:
    """Run the study, submit it to Slurm, or print its state, commands or cost."""
    from fairseq_sharing.experiment.config import find_study
    from fairseq_sharing.files import check_output_folder
    from fairseq_sharing.studies.plan import StudyPlan

    if args.nodes > 1 and args.slurm is None:
        raise SharingError(f"--nodes {args.nodes}: needs --slurm; without Slurm, run scripts/train.sh on each machine")
    plan = StudyPlan(
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
    if args.action == "run":
        check_output_folder(plan.results, "--out")
        if args.dry_run:
            plan.check()
    output, console = Console(), Console(stderr=True)
    if args.action == "status":
        _print_status(plan, output)
    elif args.action == "estimate":
        _print_estimate(plan, args.tflops, output)
    elif args.dry_run:
        _print_commands(plan, args.slurm, output)
        if plan.study.estimate:
            _print_estimate(plan, args.tflops, output)
    elif args.slurm is not None:
        _submit(plan, args.slurm, console)
    else:
        from fairseq_sharing.studies.run_study import run_study

        run_study(plan, args.jobs, args.budget, console)


def _submit(plan: StudyPlan, flags: str, console: Console) -> None:
    from fairseq_sharing.studies.run_study import call
    from fairseq_sharing.studies.slurm import submit

    plan.check()
    if prepare := plan.prepare():
        call(prepare, console)
    job = submit(plan, flags, console)
    say(
        console,
        f"submitted as job {job}, one task per run; when it has ended, re-run the command without --slurm to "
        "evaluate and report",
    )


def _print_commands(plan: StudyPlan, slurm: str | None, output: Console) -> None:
    """Print every command of the study."""
    from fairseq_sharing.studies import slurm as jobs
    from fairseq_sharing.studies.plan import show

    if slurm is not None:
        file = jobs.job_file(plan)
        if prepare := plan.prepare():
            show(prepare, output)
        show(jobs.submission(plan, file, slurm), output)
        say(output, f"contents of {file}:")
        for line in jobs.job_lines(plan):
            say(output, f"  {line}")
        output.print("after the job has ended:")
    for stage in plan.stages():
        show(stage, output)
    output.print()


def _print_status(plan: StudyPlan, output: Console) -> None:
    """Print the state of every run, from disk."""
    from fairseq_sharing.studies.listing import scores_in_words
    from fairseq_sharing.studies.progress import fraction_done
    from fairseq_sharing.studies.states import read_state
    from fairseq_sharing.training.progress import duration

    table = _table(f"{plan.study.name}: {plan.study.question}", ("row",), ("seed", "state", "done", "tokens/s", "time"))
    table.add_column("score")
    states = {run.name: read_state(plan, run) for run in plan.runs}
    for run in plan.runs:
        state = states[run.name]
        table.add_row(
            run.row,
            str(run.seed),
            str(state.state),
            f"{state.fraction:.0%}",
            f"{state.tokens_per_second:,.0f}" if state.tokens_per_second else "-",
            duration(state.seconds) if state.seconds else "-",
            scores_in_words(state.scores),
        )
    output.print(table)
    done = fraction_done(plan.runs, states)
    finished = sum(state.scores is not None for state in states.values())
    output.print(f"{finished} of {len(plan.runs)} runs finished, {done:.0%} of the training done", highlight=False)


def _print_estimate(plan: StudyPlan, tflops: float | None, output: Console) -> None:
    """Print hours and disk space per run and of the whole study."""
    from collections import Counter

    from fairseq_sharing.studies import cost

    rate, runs = tflops or cost.TFLOPS, Counter(run.row for run in plan.runs)
    table = _table(
        f"Estimate, assuming {rate:g} TFLOP/s per GPU",
        ("row",),
        ("runs", "parameters", "target tokens", "GPU hours per run", "measured hours per run", "disk per run"),
    )
    hours, disk = 0.0, cost.data_bytes(plan.study)
    for row in cost.estimate_rows(plan):
        each, measured = row.device_hours(rate), cost.measured_hours(plan, row.run)
        hours, disk = hours + runs[row.run] * each, disk + runs[row.run] * row.disk
        table.add_row(
            row.run,
            str(runs[row.run]),
            f"{row.parameters / 1e6:,.1f}M",
            f"{row.tokens / 1e6:,.0f}M",
            f"{each:,.2f}",
            f"{measured:,.2f}" if measured else "-",
            f"{row.disk / 1e9:,.1f} GB",
        )
    output.print(table)
    say(
        output,
        f"total of {runs.total()} runs: {hours:,.1f} GPU hours, {disk / 1e9:,.0f} GB including the data. Measured "
        "hours are those of finished runs in this directory.",
    )


def _table(title: str, texts: tuple[str, ...], numbers: tuple[str, ...]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for name in texts:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _jobs(text: str) -> int | None:
    return None if text == "auto" else whole_number(most=1024)(text)


def _named(text: str) -> str:
    """Refuse an empty path, which would be the current directory."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def _seconds(text: str) -> float:
    """Read a time such as 90s, 25m or 1h30m."""
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0)
    total = 3600 * hours + 60 * minutes + seconds
    if not 0 < total <= HUGE:
        raise argparse.ArgumentTypeError(f"{text}: allowed: a time above 0 such as 25m, 1h30m or 90s")
    return float(total)
