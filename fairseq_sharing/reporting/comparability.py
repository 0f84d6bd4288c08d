"""Refuse tables whose scores cannot be compared: missing baselines and differing tokenizers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fairseq_sharing.errors import SharingError


def check_comparisons(results: Iterable[dict[str, Any]], folder: Path) -> None:
    """Refuse p-values against translations whose scores are not among the results.

    Results that record no fingerprints, neither their own nor their baseline's, are matched by name and seed.

    Args:
        results: the contents of the result files of a table.
        folder: where they are.

    Raises:
        SharingError: a baseline has no result, or the result is that of other translations.
    """
    by_name = {f"{result['run']}-seed{result['seed']}": result for result in results}
    for name, result in by_name.items():
        for test, score in result["scores"].items():
            if score["p_value"] is None:
                continue
            baseline = score["baseline"]
            what = f"{folder}: the p-value of {name} on {test} is against {baseline}"
            if test not in by_name.get(baseline, {"scores": {}})["scores"]:
                raise SharingError(f"{what}, whose result is not there; evaluate {baseline} with --out {folder}")
            if score.get("baseline_sha256") != by_name[baseline]["scores"][test].get("hypothesis_sha256"):
                raise SharingError(
                    f"{what}, but against other translations than those of its result there; evaluate {baseline}, "
                    f"then {name}, with --out {folder}"
                )


def check_tokenizers(results: Iterable[dict[str, Any]], folder: Path) -> None:
    """Refuse BLEU scores by different tokenizers in one table.

    Args:
        results: the contents of the result files of a table.
        folder: where they are.

    Raises:
        SharingError: naming two results and their tokenizers.
    """
    first: tuple[str, str] | None = None
    for result in results:
        for score in result["scores"].values():
            found = re.search(r"\btok:([^|]+)", score["signature"]["bleu"])
            this = (f"{result['run']}-seed{result['seed']}", found[1] if found else "unknown")
            first = first or this
            if this[1] != first[1]:
                raise SharingError(
                    f"{folder}: BLEU of {first[0]} is by the tokenizer {first[1]}, of {this[0]} by {this[1]}; evaluate "
                    "both with one --tokenize, or report them in two folders"
                )
