"""Find and identify the translations of an evaluation's baseline."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.scoring import read_parallel
from fairseq_sharing.experiment.run_directory import RunDirectory


@dataclass(frozen=True)
class Baseline:
    """The baseline's translations of one test set.

    Attributes:
        name: the name of its result file, ``<run>-seed<seed>``.
        hypotheses: its translations.
    """

    name: str
    hypotheses: list[str]


def fingerprint(hypotheses: Sequence[str]) -> str:
    """Return the SHA-256 of translations written one per line."""
    return hashlib.sha256("".join(line + "\n" for line in hypotheses).encode()).hexdigest()


def find_baseline(
    run: RunDirectory, config: Any, configured: str | None, named: Path | None, console: Console
) -> RunDirectory | None:
    """Find the run to compare with.

    Args:
        run: the run to evaluate.
        config: its configuration.
        configured: name of the baseline in the configuration, expected next to the run with the same seed. A baseline
            that has not been evaluated is reported and skipped.
        named: directory of the baseline; takes precedence.
        console: reports a missing baseline.

    Returns:
        The baseline; None for no comparison.
    """
    if named is not None:
        return RunDirectory(named)
    if configured is None or configured == config.run:
        return None
    beside = RunDirectory(run.path.parent / f"{configured}-seed{config.seed}")
    if beside.result_file.is_file():
        return beside
    console.print(
        f"no comparison with the baseline {configured}: {beside.path} has not been evaluated;"
        " evaluate it, then evaluate this run again",
        markup=False,
        soft_wrap=True,
    )
    return None


def read_baseline(baseline: RunDirectory | None, test: str, reference: Path, segments: int) -> Baseline | None:
    """Read a baseline's translations of a test set; return None without a baseline.

    Raises:
        SharingError: there are none, or their number differs from that of the reference.
    """
    if baseline is None:
        return None
    file = baseline.evaluation / f"{test}.hypothesis"
    if not file.is_file():
        raise SharingError(f"baseline {baseline.path}: no {file.name}; evaluate the baseline first")
    config = baseline.config()
    hypotheses = read_parallel(file, segments, f"its reference {reference} has")
    return Baseline(f"{config.run}-seed{config.seed}", hypotheses)
