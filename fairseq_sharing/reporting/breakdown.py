"""Break the scores of a study down by reference length, and show the length of its translations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from fairseq_sharing.reporting.results import Row, Spread, scored_sets


@dataclass(frozen=True)
class Breakdown:
    """A table of the page.

    Attributes:
        heading: its heading.
        note: how to read it.
        headers: the headers of the columns.
        cells: one list per row.
    """

    heading: str
    note: str
    headers: list[str]
    cells: list[list[str]]


def breakdowns(rows: Sequence[Row], names: Sequence[str]) -> list[Breakdown]:
    """Make the tables; none for results without the numbers, such as those of earlier versions.

    Args:
        rows: the experiments, in order.
        names: the name of each.
    """
    return [*_by_length(rows, names), *_lengths(rows, names)]


def _by_length(rows: Sequence[Row], names: Sequence[str]) -> Iterator[Breakdown]:
    """BLEU of each row by reference length, one table per test set."""
    for test in scored_sets(rows):
        known = [score["by_length"] for row in rows for score in _scores(row, test, "by_length")]
        if not known:
            continue
        buckets = [(bucket["up_to"], bucket["segments"]) for bucket in known[0]]
        cells = []
        for row, name in zip(rows, names, strict=True):
            found = [score["by_length"] for score in _scores(row, test, "by_length")]
            # Buckets depend on the reference and its tokenizer only.
            same = [one for one in found if [(bucket["up_to"], bucket["segments"]) for bucket in one] == buckets]
            means = [Spread.of([one[i]["bleu"] for one in same]).format() if same else "-" for i in range(len(buckets))]
            cells.append([name, str(len(same)), *means])
        yield Breakdown(
            f"BLEU by reference length: {test}",
            "Columns: tokens of the reference and number of segments. Mean ± standard deviation over seeds. BLEU of "
            "different lengths is not comparable; compare rows within a column.",
            ["Model", "Seeds", *_ranges(buckets)],
            cells,
        )


def _ranges(buckets: Sequence[tuple[int | None, int]]) -> list[str]:
    headers, low = [], 0
    for up_to, segments in buckets:
        if up_to is None:
            tokens = f"over {low}" if low else "all"
        else:
            tokens = f"{low + 1} to {up_to}"
            low = up_to
        headers.append(f"{tokens} ({segments:,})")
    return headers


def _lengths(rows: Sequence[Row], names: Sequence[str]) -> Iterator[Breakdown]:
    """Length ratio, empty and over-long translations of each row and test set."""
    cells = []
    for row, name in zip(rows, names, strict=True):
        for test in scored_sets([row]):
            if found := _scores(row, test, "length_ratio"):
                ratio = Spread.of([score["length_ratio"] for score in found]).format(3)
                counts = [f"{fmean(score[key] for score in found):.1f}" for key in ("empty", "over_long")]
                cells.append([name, test, str(len(found)), f"{found[0]['segments']:,}", ratio, *counts])
    if cells:
        yield Breakdown(
            "Length of the translations",
            "Length ratio: tokens of the translations per token of the references. Empty: translations without text. "
            "Over-long: more than twice the tokens of the reference, and at least 10 more. Means over seeds.",
            ["Model", "Test set", "Seeds", "Segments", "Length ratio", "Empty", "Over-long"],
            cells,
        )


def _scores(row: Row, test: str, field: str) -> list[dict[str, Any]]:
    """Return the scores of a row's seeds on a test set that have a field."""
    scores = (result["scores"].get(test, {}) for result in row.results)
    return [score for score in scores if field in score]
