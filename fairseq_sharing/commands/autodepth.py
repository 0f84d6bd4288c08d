"""Train the classifier that chooses a depth for each sentence, which --depth auto of translate and evaluate uses.

The model must have been trained with --depths; it is not changed. The classifier is a small JSON file next to the
checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fairseq_sharing.errors import SharingError
from fairseq_sharing.finite import nonnegative_number, whole_number
from fairseq_sharing.terminal import Console

if TYPE_CHECKING:
    from fairseq_sharing.sentence_depth.train import Outcome

HELP = "train a classifier that chooses a depth for each sentence"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``autodepth``."""
    parser.add_argument(
        "model", metavar="MODEL", help="run directory (its last checkpoints are averaged) or checkpoint"
    )
    parser.add_argument(
        "--penalty",
        type=nonnegative_number,
        required=True,
        metavar="X",
        help="what one more layer must add to the score of a sentence, in the unit of --target; larger values give "
        "smaller depths",
    )
    parser.add_argument(
        "--target",
        choices=("likelihood", "correctness"),
        default="likelihood",
        help="score of a depth: the log-probability of the reference (natural logarithm), or the number of its tokens "
        "that are the model's most probable ones",
    )
    parser.add_argument(
        "--subset", default="valid", metavar="NAME", help="binarized sentences to learn from, e.g. valid or train"
    )
    parser.add_argument(
        "--sentences", type=whole_number(least=20), metavar="N", help="use N evenly spaced sentences; all if not given"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="prepared data directory, if it moved since training")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device of the model")


def run(args: argparse.Namespace) -> None:
    """Train the classifier, and print what it chooses on held-out sentences."""
    import functools

    import torch

    from fairseq_sharing.checkpoints.files import load_checkpoint
    from fairseq_sharing.decoding.model_files import find_model
    from fairseq_sharing.description.sentence_macs import measure_costs
    from fairseq_sharing.preparation.progress import progress
    from fairseq_sharing.sentence_depth.train import train_classifier

    if args.device == "cuda" and not torch.cuda.is_available():
        raise SharingError("--device cuda: torch finds no GPU; allowed: cpu")
    files = find_model(args.model, args.data, Console(stderr=True))
    if len(files.checkpoints) != 1:
        kind = "an exported model" if files.exported else "an ensemble"
        raise SharingError(f"{args.model}: is {kind}; allowed: a run directory or a checkpoint")
    (checkpoint,) = files.checkpoints
    assert files.dictionaries is not None
    with progress("score", args.sentences, "sentences") as advance:
        outcome = train_classifier(
            checkpoint,
            files.dictionaries,
            files.languages,
            functools.partial(measure_costs, load_checkpoint(checkpoint)),
            target=args.target,
            penalty=args.penalty,
            subset=args.subset,
            sentences=args.sentences,
            device=args.device,
            advance=advance,
        )
    _print(outcome, args.target, Console(highlight=False, soft_wrap=True))


def _print(outcome: Outcome, target: str, console: Console) -> None:
    from rich.table import Table

    from fairseq_sharing.depths.settings import describe
    from fairseq_sharing.sentence_depth.classifier import layers_of

    table = Table(title=f"{outcome.held_out} held-out sentences of {outcome.sentences}", title_justify="left")
    table.add_column("depth")
    unit = {"likelihood": "log-likelihood per sentence", "correctness": "correct tokens per sentence"}[target]
    for column in ("layers", unit, "best for", "chosen for"):
        table.add_column(column, justify="right")
    for setting, score, best, chosen in zip(
        outcome.settings, outcome.scores, outcome.best, outcome.chosen, strict=True
    ):
        table.add_row(describe(setting), str(layers_of(setting)), f"{score:.2f}", str(best), str(chosen))
    table.add_row("auto", f"{outcome.layers:.1f}", f"{outcome.score:.2f}", "", "")
    console.print(table)
    most = max(outcome.best) / outcome.held_out
    console.print(
        f"The classifier chooses the best depth for {100 * outcome.agreement:.1f}% of them; "
        f"no single depth is the best for more than {100 * most:.1f}%."
    )
    console.print(f"{outcome.file}: translate with --depth auto")
