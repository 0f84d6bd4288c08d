"""Score plain files: one or more systems against one or more references, with a paired test of these files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.bleu_tokenizer import check_tokenizer
from fairseq_sharing.evaluation.scoring import METRICS, Scorer, Statistics
from fairseq_sharing.files import read_lines

TRIALS = 10_000  # sacreBLEU's default
_SEED = 12345  # sacreBLEU's default


def score_files(
    hypotheses: Sequence[Path], references: Sequence[Path], target_lang: str = "", tokenize: str | None = None
) -> list[dict[str, Any]]:
    """Score plain or gzipped text files with one segment per line; compare all with the first.

    Args:
        hypotheses: the translations of each system.
        references: the raw references.
        target_lang: see `Scorer`.
        tokenize: see `Scorer`.

    Returns:
        For each system, its file name as ``hypothesis`` and the fields of `Scorer.scores`. With several systems also
        ``p_value``, for each metric the p-value of the difference from the first system; None for that system.

    Raises:
        SharingError: a file is missing, is not UTF-8 or has a different number of lines than the first reference, or
            the tokenizer is not available.
    """
    check_tokenizer(target_lang, tokenize)
    first = list(read_lines(references[0]))
    others = [read_parallel(path, len(first), f"the reference {references[0]} has") for path in references[1:]]
    systems = [read_parallel(path, len(first), f"its reference {references[0]} has") for path in hypotheses]
    scorer = Scorer([first, *others], target_lang, tokenize)
    counted = [scorer.statistics(lines) for lines in systems]
    results = []
    for path, lines, counts in zip(hypotheses, systems, counted, strict=True):
        result = {"hypothesis": str(path), **scorer.scores(lines, counts)}
        if len(systems) > 1:
            result["p_value"] = None if counts is counted[0] else paired_test(scorer, counted[0], counts)
        results.append(result)
    return results


def paired_test(scorer: Scorer, one: Statistics, other: Statistics) -> dict[str, float]:
    """Test by paired approximate randomization whether the scores of two translations of one text differ.

    The test is sacreBLEU's ``PairedTest(test_type="ar")`` with the same trials, except that a trial as different as
    the systems counts as evidence against a difference. Equal translations therefore have p = 1; sacreBLEU gives
    1 / 10,001 for them, and for translations that differ in one segment.

    Args:
        scorer: the metrics.
        one, other: the statistics of the two translations.

    Returns:
        For each metric, the share of trials that differ at least as much as the two translations.

    Source:
        Riezler and Maxwell 2005, "On Some Pitfalls in Automatic Evaluation and Significance Testing for MT".
    """
    swap = np.random.default_rng(_SEED).integers(2, size=(TRIALS, scorer.segments), dtype=bool)
    p_values = {}
    for name in METRICS:
        real = abs(scorer.value(name, one[name]) - scorer.value(name, other[name]))
        shuffled = [mask @ one[name] + ~mask @ other[name] for mask in (swap, ~swap)]
        values = [np.array([scorer.value(name, row[None]) for row in rows]) for rows in shuffled]
        # Rounding differs between the order of segments in a trial and in the test set.
        as_different = np.abs(values[0] - values[1]) >= real - 1e-9
        p_values[name] = round(float((as_different.sum() + 1) / (TRIALS + 1)), 6)
    return p_values


def read_parallel(path: Path, expected: int, other: str) -> list[str]:
    """Read a file that must have a given number of lines.

    Args:
        path: the file; decompressed if its name ends in .gz.
        expected: number of lines.
        other: subject and verb for the error message, such as "its reference r.txt has".

    Raises:
        SharingError: the number of lines differs; the message contains both numbers.
    """
    segments = list(read_lines(path))
    if len(segments) != expected:
        raise SharingError(f"{path} has {len(segments)} lines, {other} {expected}")
    return segments
