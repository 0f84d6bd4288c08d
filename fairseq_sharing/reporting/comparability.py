"""Reject tables whose scores are not comparable: missing baselines and different tokenizers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fairseq_sharing.errors import SharingError


def check_comparisons(results: Iterable[dict[str, Any]], folder: Path) -> None:
    """Reject p-values against translations whose scores are not among the results.

    If neither a result nor its baseline records fingerprints, they are matched by name and seed.

    Args:
        results: the contents of the result files of a table.
        folder: the folder that contains them.

    Raises:
        SharingError: a baseline has no result, or its result is for different translations.
    """
    by_name = {f"{result['run']}-seed{result['seed']}": result for result in results}
    for name, result in by_name.items():
        for test, score in result["scores"].items():
            if score.get("p_value") is None:
                continue
            baseline = score["baseline"]
            what = f"{folder}: {name} has a p-value on {test} against {baseline}"
            if test not in by_name.get(baseline, {"scores": {}})["scores"]:
                raise SharingError(
                    f"{what}, which has no result in this folder; evaluate {baseline} with --out {folder}"
                )
            if score.get("baseline_sha256") != by_name[baseline]["scores"][test].get("hypothesis_sha256"):
                raise SharingError(
                    f"{what}, whose result in this folder is for different translations; evaluate {baseline}, "
                    f"then {name}, with --out {folder}"
                )


def check_tokenizers(results: Iterable[dict[str, Any]], folder: Path) -> None:
    """Reject a table that mixes BLEU scores of different tokenizers.

    Args:
        results: the contents of the result files of a table.
        folder: the folder that contains them.

    Raises:
        SharingError: two results use different tokenizers; the message names both.
    """
    first: tuple[str, str] | None = None
    for result in results:
        for score in result["scores"].values():
            found = re.search(r"\btok:([^|]+)", score["signature"]["bleu"])
            this = (f"{result['run']}-seed{result['seed']}", found[1] if found else "unknown")
            first = first or this
            if this[1] != first[1]:
                raise SharingError(
                    f"{folder}: BLEU uses tokenizer {first[1]} for {first[0]} but {this[1]} for {this[0]}; evaluate "
                    "both with the same --tokenize, or report them in separate folders"
                )
