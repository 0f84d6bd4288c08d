"""The tables of a study: its experiments, the comparison of their scores, and its runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fairseq_sharing.reporting.breakdown import by_length, lengths
from fairseq_sharing.reporting.comparison_tables import by_test, comparison
from fairseq_sharing.reporting.conclusions import Conclusions
from fairseq_sharing.reporting.equal_cost import equal_cost
from fairseq_sharing.reporting.metrics import METRICS
from fairseq_sharing.reporting.recipes import differences
from fairseq_sharing.reporting.results import Row, scored_sets

Cells = list[list[str]]

TEXT_COLUMNS = ("Model", "Recipe", "Row", "Compared with", "Verdict", "Run", "Test set")


@dataclass(frozen=True)
class Section:
    """A table of the report.

    Attributes:
        heading: its heading; empty for the first table.
        headers: the names of its columns.
        cells: its lines.
        in_terminal: whether the terminal shows it too.
        detailed: whether it comes after the notes.
    """

    heading: str
    headers: list[str]
    cells: Cells
    in_terminal: bool = False
    detailed: bool = False


def sections(rows: Sequence[Row], conclusions: Conclusions) -> list[Section]:
    """Make all tables of a study that have lines.

    Args:
        rows: the experiments, in order.
        conclusions: the comparison of their scores.
    """
    against = f" with {conclusions.plan.baseline}" if conclusions.plan.baseline and not conclusions.plan.pairs else ""
    found = [
        Section("", *summary(rows, conclusions.plan.metric), in_terminal=True),
        Section(f"Comparison{against}: {conclusions.score_name}", *comparison(conclusions), in_terminal=True),
        Section(f"Differences per test set, {conclusions.plan.of.label}", *by_test(conclusions)),
        Section("Comparisons at equal cost with rows without sharing", *equal_cost(rows, conclusions)),
        *(
            Section(f"BLEU by reference length (segments): {test}", *by_length(rows, test), detailed=True)
            for test in scored_sets(rows)
        ),
        Section("Lengths of the outputs, mean per run", *lengths(rows), detailed=True),
        Section("Results per run", *by_run(rows), detailed=True),
    ]
    return [section for section in found if section.cells]


def summary(rows: Sequence[Row], metric: str = "bleu") -> tuple[list[str], Cells]:
    """Make the main table: one experiment per row, mean ± standard deviation per test set.

    Args:
        rows: the experiments, in order.
        metric: key of ``METRICS``.

    Returns:
        The headers and the cells.
    """
    tests = scored_sets(rows)
    recipes = differences(rows)
    changing = any(row.schedule for row in rows)
    with_macs = any(row.macs for row in rows) and not changing  # a schedule changes no MACs, and the page is narrow
    headers = ["Model", "M", "N", "Unique parameters", "Effective parameters"]
    headers += ["MACs, millions"] if with_macs else []
    headers += ["Mean unique parameters", "Peak memory, GiB"] if changing else []
    headers += ["Recipe"] if any(recipes) else []
    cells = []
    for row, name, recipe in zip(rows, names(rows), recipes, strict=True):
        line = [
            name,
            row.sizes("unique_layers"),
            row.sizes("layers"),
            row.parameters("unique"),
            row.parameters("effective"),
            *([row.macs or "-"] if with_macs else []),
            *([row.mean_parameters, row.peak_memory] if changing else []),
            *([recipe or "-"] if any(recipes) else []),
            row.speed.format(0) if row.speed else "-",
            row.updates,
            str(len(row.results)),
        ]
        scores = [row.score(test, metric) for test in tests]
        cells.append(line + [score.format() if score else "-" for score in scores])
    label = METRICS[metric].label
    return [*headers, "Tokens/s", "Updates", "n", *(f"{label} {test}" for test in tests)], cells


def names(rows: Sequence[Row]) -> list[str]:
    """Name each row by its strategy; add the run name if strategy, M and N are ambiguous."""
    return [f"{row.label}, {row.run}" if _needs_run(row, rows) else row.label for row in rows]


def titles(rows: Sequence[Row]) -> list[str]:
    """Name each row in a legend by strategy, M and N; add the run name if these are ambiguous."""
    return [f"{row.title}, {row.run}" if _needs_run(row, rows) else row.title for row in rows]


def _needs_run(row: Row, rows: Sequence[Row]) -> bool:
    """Return whether the run name must be added; not if it only repeats the label, as in "Vanilla, vanilla"."""
    return _is_ambiguous(row, rows) and re.sub(r"\W+", "_", row.label.lower()).strip("_") != row.run


def _is_ambiguous(row: Row, rows: Sequence[Row]) -> bool:
    if row.strategy == "custom":
        return True
    if row.schedule:  # its final M is an outcome and does not identify it
        return sum(other.label == row.label for other in rows) > 1
    return sum(other.title == row.title for other in rows) > 1


def by_run(rows: Sequence[Row]) -> tuple[list[str], Cells]:
    """Make the detailed table: one run and test set per row, with all metrics."""
    results = [result for row in rows for result in row.results]
    scores = [score for result in results for score in result["scores"].values()]
    metrics = [name for name in METRICS if any(name in score for score in scores)]
    with_interval = any("bleu_interval" in score for score in scores)
    headers = ["Run", "Seed", "Test set", "Segments"]
    for name in metrics:
        headers += [METRICS[name].label, *(["BLEU, 95% over sentences"] if name == "bleu" and with_interval else [])]
    cells = []
    for result in results:
        for test, score in result["scores"].items():
            line = [result["run"], str(result["seed"]), test, f"{score['segments']:,}"]
            for name in metrics:
                line.append(f"{score[name]:.2f}" if name in score else "-")
                if name == "bleu" and with_interval:
                    low_high = score.get("bleu_interval")
                    line.append(f"{low_high[0]:.2f} to {low_high[1]:.2f}" if low_high else "-")
            cells.append(line)
    return headers, cells
