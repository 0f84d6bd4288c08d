"""Match the budgets of two experiments and print the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.table import Table

from fairseq_sharing import flags
from fairseq_sharing.description.counts import composed_vocabulary
from fairseq_sharing.description.match import BUDGETS, Cost, Match, Setting, match, refuse_residual
from fairseq_sharing.description.step_memory import DEVICES
from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.config import compose
from fairseq_sharing.terminal import Console

# A configuration file or study, and its overrides.
Experiment = tuple[Path, Sequence[str]]
_MATCHED = {
    "parameters": "unique parameters, including embeddings",
    "macs": "MACs of a forward pass",
    "time": "time of a training step",
}


def print_match(
    experiment: Experiment,
    reference: Experiment,
    *,
    by: str,
    solve: Sequence[str],
    multiple_of: int = 1,
    nearest: bool = False,
    data: Path | None = None,
    vocabulary: int | None = None,
    length: int = 25,
    runs: int = 5,
    device: str = "cpu",
) -> None:
    """Print the values of the solved fields around the budget of the reference, and the overrides to use.

    Args:
        experiment: the experiment to change.
        reference: the experiment with the wanted budget.
        by: the budget, one of ``BUDGETS``.
        solve: the fields to solve for.
        multiple_of: try multiples of this number only.
        nearest: choose the nearest value instead of the largest value within the budget.
        data: a prepared data directory, for the size of its dictionary.
        vocabulary: the dictionary size, if there is no data yet.
        length: source and target tokens per sentence.
        runs: timed updates of each model.
        device: device of the timed updates.

    Raises:
        SharingError: an invalid option, or a budget that cannot be reached within 1%.
    """
    if by not in BUDGETS:
        raise SharingError(f"--by {by}; allowed: {', '.join(BUDGETS)}")
    available = [name for name in DEVICES if name == "cpu" or torch.cuda.is_available()]
    if device not in available:
        raise SharingError(f"--device {device}; allowed: {', '.join(available)}")
    ours, theirs = (compose(file, words, check=flags.check) for file, words in (experiment, reference))
    setting = Setting(by, composed_vocabulary(ours, data, vocabulary), length, runs, device)
    with Console(stderr=True).status("matching budgets"):
        found = match(ours.train, theirs.train, solve, setting, multiple_of, nearest)
    console = Console(highlight=False, soft_wrap=True)
    console.print(_table(found, setting))
    refuse_residual(found, setting)
    console.print(f"matched: {_MATCHED[by]}; {_position(found)}")
    console.print(found.overrides)


def _table(found: Match, setting: Setting) -> Table:
    names = ", ".join(f"train.{option}" for option in found.options)
    costs = [found.reference, *found.candidates.values()]
    table = Table(title=f"{names}: vocabulary {setting.vocabulary:,}, {setting.length} + {setting.length} tokens")
    table.add_column("")
    for name in ("reference", *map(str, found.candidates)):
        table.add_column(name, justify="right")

    def add(title: str, number: Callable[[Cost], int]) -> None:
        table.add_row(title, *(f"{number(cost):,}" for cost in costs))

    add("unique parameters", lambda cost: cost.parameters)
    add("  without embeddings", lambda cost: cost.parameters - cost.embeddings)
    add("MACs per sentence", lambda cost: cost.macs)
    add("MACs per token", lambda cost: cost.macs // setting.length)
    table.add_row(f"difference in {setting.by}", "", *(f"{100 * cost.residual:+.3f}%" for cost in costs[1:]))
    return table


def _position(found: Match) -> str:
    lower, _ = found.candidates
    residual = f"{100 * found.candidates[found.value].residual:+.3f}%"
    return f"{'the largest value within the budget' if found.value == lower else 'the nearest value'}, {residual}"
