"""Break scores down: BLEU by reference length, lengths of outputs, and the segments in which two rows differ most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_sharing.markdown import plain
from fairseq_sharing.reporting.kept_hypotheses import read_kept
from fairseq_sharing.reporting.results import Row, Spread, scored_sets
from fairseq_sharing.reporting.segments import RawTexts, SegmentStatistics, make_metric

Cells = list[list[str]]

_SHOWN = 5  # segments at each end
_METRIC = "chrf"  # defined for single sentences, unlike BLEU


def by_length(rows: Sequence[Row], test: str) -> tuple[list[str], Cells]:
    """Make the table of BLEU by reference length on a test set: one row per experiment, mean ± sd over seeds.

    Returns:
        The headers and the cells; no cells if no result has these scores.
    """
    found = {row.run: [result["scores"].get(test, {}).get("by_length") for result in row.results] for row in rows}
    complete = {run: buckets for run, buckets in found.items() if all(buckets)}
    if not complete:
        return [], []
    first = next(iter(complete.values()))[0]
    bounds = [_bound(bucket["up_to"], index, first) for index, bucket in enumerate(first)]
    headers = ["Row", *(f"{bound} ({bucket['segments']:,})" for bound, bucket in zip(bounds, first, strict=True))]
    return headers, [
        [run, *(Spread.of([bucket["bleu"] for bucket in column]).format() for column in zip(*buckets, strict=True))]
        for run, buckets in complete.items()
    ]


def _bound(up_to: int | None, index: int, buckets: Sequence[Mapping[str, Any]]) -> str:
    if up_to is not None:
        return f"up to {up_to}"
    return f"above {buckets[index - 1]['up_to']}" if index else "all"


def lengths(rows: Sequence[Row]) -> tuple[list[str], Cells]:
    """Make the table of output lengths: length ratio, empty and over-long outputs, mean ± sd over seeds.

    Returns:
        The headers and the cells; no cells if no result has these numbers.
    """
    cells = []
    for row in rows:
        for test in scored_sets([row]):
            numbers = [row.score(test, name) for name in ("length_ratio", "empty", "over_long")]
            if all(numbers):
                ratio, *counts = (number for number in numbers if number)
                cells.append([row.run, test, ratio.format(3), *(count.format(1) for count in counts)])
    return ["Row", "Test set", "Length ratio", "Empty", "Over-long"], cells


def differing_segments(rows: Sequence[Row], pairs: Sequence[tuple[str, str]], folder: Path, texts: RawTexts) -> str:
    """Describe the segments in which pairs of rows differ most in chrF, averaged over all seeds.

    Args:
        rows: the experiments.
        pairs: names of the rows; the second is subtracted from the first.
        folder: the folder of the result files.
        texts: the raw test sets.

    Returns:
        A Markdown page; it quotes the test sets, so it is not for publication where their licenses forbid that.
    """
    by_name = {row.run: row for row in rows}
    parts = [
        "# Segments in which rows differ most",
        "chrF2 of each segment, mean over seeds; below it, every seed. A difference in one seed only is noise.",
    ]
    for test in scored_sets(rows):
        if test not in texts.references:
            continue
        references, sources = texts.references[test], texts.sources[test]
        outputs = {row.run: _outputs(row, test, folder) for row in rows}
        scores = {run: _scores(by_name[run], test, seeds, references) for run, seeds in outputs.items() if seeds}
        for first, second in pairs:
            if first in scores and second in scores:
                parts.append(f"## {test}: {first} - {second}")
                means = scores[first].mean(axis=0) - scores[second].mean(axis=0)
                order = np.argsort(means, kind="stable")
                for index in [*order[::-1][:_SHOWN], *order[:_SHOWN]]:
                    parts.append(f"### Segment {index + 1}: {means[index]:+.1f}")
                    lines = [f"- source: {plain(sources[index])}", f"- reference: {plain(references[index])}"]
                    for run in (first, second):
                        lines += [
                            f"- {run}, seed {seed} ({score:.1f}): {plain(text[index])}"
                            for (seed, text), score in zip(outputs[run].items(), scores[run][:, index], strict=True)
                        ]
                    parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _outputs(row: Row, test: str, folder: Path) -> dict[int, list[str]]:
    """Read the hypotheses of each seed; empty if a result names none."""
    scores = {result["seed"]: result["scores"].get(test, {}) for result in row.results}
    if any("hypotheses" not in score for score in scores.values()):
        return {}
    return {seed: read_kept(score, folder) for seed, score in scores.items()}


def _scores(row: Row, test: str, outputs: Mapping[int, Sequence[str]], references: Sequence[str]) -> np.ndarray:
    """Score each segment of each seed."""
    statistics = SegmentStatistics(make_metric(_METRIC, row["scores"][test]["signature"][_METRIC]), references)
    return np.array([[statistics.score(segment) for segment in statistics.of(texts)] for texts in outputs.values()])
