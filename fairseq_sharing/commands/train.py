"""Train a model with fairseq-train. Re-run the command to resume."""

from __future__ import annotations

import argparse
from pathlib import Path

from fairseq_sharing.commands.experiment_flags import add_experiment
from fairseq_sharing.finite import whole_number
from fairseq_sharing.terminal import Console, say

HELP = "train a model; re-run to resume"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``train``."""
    add_experiment(parser, "seed=2 train.max_epoch=3")
    parser.add_argument(
        "--out", type=Path, metavar="RUN", help="run directory; RUNS/<study or dataset>/<row>-seed<seed> if not given"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="directory of all runs")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="prepared data directory; that of the configuration, or data/<dataset>, if not given",
    )
    parser.add_argument(
        "--devices",
        type=whole_number(),
        metavar="N",
        help="GPUs per machine, or CPU processes if it has no GPU; all GPUs, or one process, if not given",
    )
    parser.add_argument("--nodes", type=whole_number(most=100_000), default=1, metavar="K", help="number of machines")
    parser.add_argument(
        "--node-rank", type=whole_number(least=0), default=0, metavar="R", help="rank of this machine, from 0"
    )
    parser.add_argument(
        "--master", metavar="HOST:PORT", help="address and free port of machine 0; required for several machines"
    )
    parser.add_argument(
        "--fit-memory",
        action="store_true",
        help="choose train.max_tokens by device memory; tokens_per_batch stays the same, --update-freq is adjusted",
    )
    parser.add_argument(
        "--map-of",
        type=Path,
        metavar="RUN",
        help="train from scratch with the final layer map of another run (run directory or checkpoint)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check the configuration, print the training command and stop"
    )


def run(args: argparse.Namespace) -> None:
    """Compose the configuration and train."""
    import shlex

    from fairseq_sharing import flags
    from fairseq_sharing.experiment.config import compose
    from fairseq_sharing.experiment.run_directory import default_directory
    from fairseq_sharing.files import check_output_folder
    from fairseq_sharing.training.launch import check_scorer, train
    from fairseq_sharing.training.plan import Machines, make_plan

    overrides = list(args.overrides)
    map_of = args.map_of
    if map_of is None and (row := (config := compose(args.config, overrides)).get("map_of")):
        map_of = default_directory(config, args.runs, row)
    if map_of is not None:
        from fairseq_sharing.schedules.replay import final_map_options

        overrides += [f"train.{name}={value}" for name, value in final_map_options(map_of).items()]
    plan = make_plan(
        compose(args.config, overrides, check=flags.check),
        run=args.out,
        runs=args.runs,
        data=args.data,
        devices=args.devices,
        machines=Machines(args.nodes, args.node_rank, args.master),
        fit_memory=args.fit_memory,
    )
    check_output_folder(plan.run.path, "--out")
    if args.dry_run:
        check_scorer(plan)
        say(Console(), shlex.join(plan.command()))
        return
    train(plan, Console(stderr=True))
