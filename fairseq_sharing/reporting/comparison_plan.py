"""What a report compares: the declaration of the study, overridden by the flags of ``report``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fairseq_sharing.documents import is_quantity
from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.layers import check_name, check_names, read_yaml
from fairseq_sharing.experiment.study import COMPARE_KEYS
from fairseq_sharing.reporting.metrics import METRICS, Metric
from fairseq_sharing.reporting.results import Row, scored_sets

DECLARATION = "study.yaml"
MEAN = "mean"


@dataclass(frozen=True)
class ComparisonPlan:
    """The comparison of a study.

    Attributes:
        baseline: the row that the others are compared with; None for a descriptive report.
        primary: the test set of the primary score, or ``mean`` of all.
        metric: key of ``METRICS``.
        margin: difference below which rows count as equivalent.
        variance: ``pooled`` over rows, or ``separate`` per row (Welch).
        pairs: the chosen pairs of rows; empty to compare all rows with the baseline.
        paired_seeds: compare runs with equal seeds.
        seeds: declared seeds per row.
        remarks: sentences for the notes of the report.
        study: the declared name of the study.
    """

    baseline: str | None
    metric: str
    primary: str = MEAN
    margin: float = 0.3
    variance: str = "pooled"
    pairs: tuple[tuple[str, str], ...] = ()
    paired_seeds: bool = False
    seeds: Mapping[str, Sequence[int]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    study: str | None = None

    @property
    def of(self) -> Metric:
        """The metric's name and direction."""
        return METRICS[self.metric]


def make_plan(folder: Path, rows: Sequence[Row], flags: Mapping[str, Any]) -> ComparisonPlan:
    """Combine the study's declaration in the folder, if any, with the flags of ``report``.

    Args:
        folder: the results of the study.
        rows: its rows.
        flags: the given flags: baseline, primary, metric, margin, variance, family, paired_seeds.

    Raises:
        SharingError: a malformed declaration, or a row, test set, metric or margin that does not exist.
    """
    study, declared, seeds, earlier = _declaration(folder / DECLARATION)
    given = {key: flags[key] for key in COMPARE_KEYS if flags.get(key) is not None}
    chosen = {**declared, **given}
    remarks = [f"The comparison was changed after runs had finished; earlier: {block}." for block in earlier]
    changed = [key for key, value in given.items() if key in declared and declared[key] != value]
    if changed:
        remarks.append(f"Flags of this report override the study's declaration: {', '.join(changed)}.")
    names = [row.run for row in rows]
    baseline = chosen.get("baseline") or ("vanilla" if "vanilla" in names else None)
    if baseline is not None and baseline not in names:
        if "baseline" in given:
            raise SharingError(f"--baseline: no row {baseline!r}; allowed: {', '.join(names)}")
        remarks.append(f"The baseline of the study, {baseline}, has no result, so no row is compared with it.")
        baseline = None
    metric = str(chosen.get("metric") or ("bleu" if _is_scored(rows, "bleu") else "perplexity"))
    _check_choice("metric", metric, [name for name in METRICS if _is_scored(rows, name)])
    primary = str(chosen.get("primary", MEAN))
    _check_choice("primary", primary, [MEAN, *scored_sets(rows)])
    margin = chosen.get("margin", 0.3)
    if not is_quantity(margin) or not 0 < margin < 100:
        raise SharingError(f"margin: {margin!r}; allowed: a number above 0 and below 100")
    family = flags.get("family") or "rows"
    return ComparisonPlan(
        baseline=baseline,
        metric=metric,
        primary=primary,
        margin=float(margin),
        variance=flags.get("variance") or "pooled",
        pairs=() if family == "rows" else _read_pairs(Path(family), names),
        paired_seeds=bool(flags.get("paired_seeds")),
        seeds=seeds,
        remarks=tuple(remarks),
        study=study,
    )


def read_declaration(file: Path) -> dict[str, Any]:
    """Read the declaration of a study, with its ``compare`` block and the list of ``earlier`` ones.

    Args:
        file: the declaration; without one, both are empty.

    Raises:
        SharingError: the file is not readable, or one of these is malformed.
    """
    document: Any = OmegaConf.to_container(read_yaml(file)) if file.is_file() else {}
    compare, earlier = document.get("compare") or {}, document.get("earlier") or []
    if not isinstance(compare, dict):
        raise SharingError(f"{file}: compare: {compare!r}; allowed: a mapping with {', '.join(COMPARE_KEYS)}")
    check_names(OmegaConf.create(compare), COMPARE_KEYS, f"{file}: compare: ")
    if not isinstance(earlier, list) or not all(isinstance(block, dict) for block in earlier):
        raise SharingError(f"{file}: earlier: {earlier!r}; allowed: a list of compare blocks")
    return {**document, "compare": compare, "earlier": earlier}


def _declaration(file: Path) -> tuple[str | None, dict[str, Any], dict[str, list[int]], list[str]]:
    """Read the study's name, compare block, seeds per row and earlier compare blocks; empty without a file."""
    document = read_declaration(file)
    compare, seeds = document["compare"], document.get("seeds") or {}
    if not isinstance(seeds, dict) or not all(
        isinstance(numbers, list) and all(isinstance(seed, int) for seed in numbers) for numbers in seeds.values()
    ):
        raise SharingError(f"{file}: seeds: {seeds!r}; allowed: a mapping of rows to lists of whole numbers")
    baseline = compare.get("baseline")
    for row in seeds if baseline is None else (*seeds, baseline):
        check_name(str(row), f"{file}: row")
    name = document.get("study")
    if name is not None:
        name = check_name(str(name), f"{file}: study")
    return name, compare, seeds, [_earlier(block, file) for block in document["earlier"]]


def _earlier(block: Any, file: Path) -> str:
    """Describe an earlier compare block."""
    check_names(OmegaConf.create(block), COMPARE_KEYS, f"{file}: earlier: ")
    return ", ".join(f"{key} {check_name(str(value), f'{file}: earlier: {key}')}" for key, value in block.items())


def _is_scored(rows: Sequence[Row], metric: str) -> bool:
    return any(metric in score for row in rows for result in row.results for score in result["scores"].values())


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise SharingError(f"{name}: {value!r}; allowed: {', '.join(allowed)}")


def _read_pairs(file: Path, names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Read a file of pairs: two row names per line; the second is subtracted from the first."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SharingError(f"--family {file}: {error}; allowed: rows, or a file with two row names per line") from None
    pairs = []
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or words[0] == words[1] or not set(words) <= set(names):
            raise SharingError(
                f"--family {file}, line {number}: {line!r}; allowed: two different rows of {', '.join(names)}"
            )
        pairs.append((words[0], words[1]))
    if not pairs:
        raise SharingError(f"--family {file}: contains no pair; allowed: two row names per line")
    return tuple(pairs)
