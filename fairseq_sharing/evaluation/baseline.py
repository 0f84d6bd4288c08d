"""The baseline of an evaluation: find its translations and identify them."""

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
    """The translations of one test set by the run compared with.

    Attributes:
        name: the name of its result file, ``<run>-seed<seed>``.
        hypotheses: its translations.
    """

    name: str
    hypotheses: list[str]


def fingerprint(hypotheses: Sequence[str]) -> str:
    """Identify translations: the SHA-256 of their file, one per line."""
    return hashlib.sha256("".join(line + "\n" for line in hypotheses).encode()).hexdigest()


def find_baseline(
    run: RunDirectory, config: Any, configured: str | None, named: Path | None, console: Console
) -> RunDirectory | None:
    """Find the run to compare with.

    Args:
        run: the run that is evaluated.
        config: its configuration.
        configured: name of the baseline in the configuration, looked up beside the run at the same seed. One that is
            not evaluated yet is reported and left out.
        named: directory of the baseline, which takes precedence.
        console: where a missing baseline is reported.
    """
    if named is not None:
        return RunDirectory(named)
    if configured is None or configured == config.run:
        return None
    beside = RunDirectory(run.path.parent / f"{configured}-seed{config.seed}")
    if beside.result_file.is_file():
        return beside
    console.print(
        f"no comparison with the baseline {configured}: {beside.path} is not evaluated yet"
        " (evaluate it, then this run again)",
        markup=False,
        soft_wrap=True,
    )
    return None


def read_baseline(baseline: RunDirectory | None, test: str, reference: Path, segments: int) -> Baseline | None:
    """Read a baseline's translations of a test set; None without a baseline.

    Raises:
        SharingError: it has none, or not as many as the reference.
    """
    if baseline is None:
        return None
    file = baseline.evaluation / f"{test}.hypothesis"
    if not file.is_file():
        raise SharingError(f"baseline {baseline.path} has no {file.name}: evaluate it first")
    config = baseline.config()
    hypotheses = read_parallel(file, segments, f"its reference {reference} has")
    return Baseline(f"{config.run}-seed{config.seed}", hypotheses)
