"""Reject results whose scores are not comparable: other metrics, test sets, or decoding settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fairseq_sharing.errors import SharingError
from fairseq_sharing.reporting.results import Row


def check_signatures(results: Iterable[dict[str, Any]], folder: Path) -> None:
    """Reject a table that mixes scores with different signatures.

    Args:
        results: the contents of the result files of a table.
        folder: the folder that contains them.

    Raises:
        SharingError: two results have different signatures of a metric; the message names both.
    """
    first: dict[str, tuple[str, str]] = {}
    for result in results:
        name = f"{result['run']}-seed{result['seed']}"
        for score in result["scores"].values():
            for metric, signature in score.get("signature", {}).items():
                other, its = first.setdefault(metric, (name, signature))
                if signature != its:
                    raise SharingError(
                        f"{folder}: {metric} has signature {its} for {other} but {signature} for {name}; score both "
                        "with the same version and settings, or report them in separate folders"
                    )


def check_test_sets(results: Iterable[dict[str, Any]], folder: Path) -> None:
    """Reject a table in which a test set has different numbers of segments.

    Args:
        results: the contents of the result files of a table.
        folder: the folder that contains them.

    Raises:
        SharingError: two results differ in the number of segments of a test set; the message names both.
    """
    first: dict[str, tuple[str, int]] = {}
    for result in results:
        name = f"{result['run']}-seed{result['seed']}"
        for test, score in result["scores"].items():
            other, segments = first.setdefault(test, (name, score["segments"]))
            if score["segments"] != segments:
                raise SharingError(
                    f"{folder}: {test} has {segments:,} segments for {other} but {score['segments']:,} for {name}; "
                    "allowed: the same test sets for all runs"
                )


def check_decoding(rows: Sequence[Row], folder: Path) -> None:
    """Reject rows whose seeds average different numbers of checkpoints or are decoded with different settings.

    Args:
        rows: the experiments.
        folder: the folder that contains their results.

    Raises:
        SharingError: two seeds of a row differ; the message names both values.
    """
    for row in rows:
        first: dict[str, Any] | None = None
        for result in row.results:
            found = {
                "averaged checkpoints": len((result.get("checkpoint") or {}).get("averaged", ())),
                **(result.get("generation") or {}),
            }
            first = first or found
            # The batch size of decoding changes rounding only.
            for name in sorted(first.keys() & found.keys() - {"max_tokens"}):
                if first[name] != found[name]:
                    raise SharingError(
                        f"{folder}: {row.run}: seeds {row['seed']} and {result['seed']} differ in {name}: "
                        f"{first[name]} and {found[name]}; evaluate both with the same settings"
                    )
