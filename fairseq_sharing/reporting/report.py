"""Write the report of a study (tables, figures and HTML page) from its result files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import write_text
from fairseq_sharing.reporting import comparison_tables, formats, paper
from fairseq_sharing.reporting.breakdown import differing_segments
from fairseq_sharing.reporting.comparability import check_decoding, check_signatures, check_test_sets
from fairseq_sharing.reporting.comparison_plan import make_plan
from fairseq_sharing.reporting.conclusions import Conclusions, conclude
from fairseq_sharing.reporting.results import Row, add_result, read_rows, scored_sets
from fairseq_sharing.reporting.segments import RawTexts, segment_errors


@dataclass(frozen=True)
class Report:
    """A study's rows, their comparison, and the files of its report."""

    title: str
    rows: Sequence[Row]
    conclusions: Conclusions
    files: Sequence[Path]


def write_report(
    folder: Path, runs: Iterable[Path] = (), flags: Mapping[str, Any] | None = None, texts: RawTexts | None = None
) -> Report:
    """Write table.md, table.csv, table.tex, the figures and index.html of a study.

    If rows can be compared, comparison.csv has the comparisons. If the study has rows and test sets of the paper's
    table, paper.md compares them.

    Args:
        folder: the result files, one JSON file per run; the report is written to this folder.
        runs: run directories, or directories of them, whose results are copied to the folder first.
        flags: flags of ``report`` that override the study's declaration (`comparison_plan.make_plan`).
        texts: the raw test sets, to estimate the part of the error that comes from the sentences, and to write
            segments.md, the segments in which rows differ most.

    Returns:
        The rows, their comparison and the files written.

    Raises:
        SharingError: no result, results that do not belong together, or a missing package such as matplotlib.
    """
    try:
        import matplotlib  # noqa: F401

        from fairseq_sharing.reporting import figures, page
        from fairseq_sharing.reporting.plot_style import SUFFIXES
    except ImportError as error:
        raise SharingError(
            f"report requires {error.name}; install it with: pip install 'fairseq-sharing[report]'"
        ) from error
    for run in runs:
        _collect(run, folder)
    rows = read_rows(folder)
    results = [result for row in rows for result in row.results]
    check_signatures(results, folder)
    check_test_sets(results, folder)
    check_decoding(rows, folder)
    conclusions = _conclude(folder, rows, flags or {}, texts)
    title = f"Sharing parameters across layers: {_name(folder, conclusions, rows[0]['dataset'])}"
    pictures = figures.draw(rows, folder, conclusions.plan.metric)
    pages: dict[str, Callable[[], str]] = {
        "table.md": lambda: formats.markdown(rows, conclusions, title, pictures),
        "table.csv": lambda: formats.comma_separated(rows),
        "table.tex": lambda: formats.latex(rows, conclusions),
        "index.html": lambda: page.write_page(rows, conclusions, title, folder, pictures),
    }
    if conclusions.family:
        pages["comparison.csv"] = lambda: comparison_tables.comma_separated(conclusions)
    if texts and conclusions.pairs:
        pages["segments.md"] = lambda: differing_segments(rows, conclusions.pairs, folder, texts)
    if any(row.run in paper.ROWS for row in rows) and any(test in paper.TESTS for test in scored_sets(rows)):
        pages["paper.md"] = lambda: paper.markdown(rows, title)
    for name, make in pages.items():
        write_text(folder / name, make())
    drawn = [str(Path(name).with_suffix(suffix)) for suffix in SUFFIXES for name, _ in pictures]
    return Report(title, rows, conclusions, [folder / name for name in (*pages, *drawn)])


def _name(folder: Path, conclusions: Conclusions, dataset: str) -> str:
    """Name the study: as declared, else by its folder below ``results`` or ``runs``; and its dataset."""
    parts = folder.resolve().parts
    start = max((i for i, part in enumerate(parts[:-1]) if part in ("results", "runs")), default=len(parts) - 2)
    below = parts[start + 1 :]
    study = conclusions.plan.study or "/".join(below[:-1] if len(below) > 1 and below[-1] == "report" else below)
    return study if dataset in study.split("/") else f"{study} ({dataset})"


def _conclude(folder: Path, rows: Sequence[Row], flags: Mapping[str, Any], texts: RawTexts | None) -> Conclusions:
    conclusions = conclude(rows, make_plan(folder, rows, flags))
    if texts is None or conclusions.family is None:
        return conclusions
    pairs = [comparison.pair for comparison in conclusions.family.comparisons]
    errors = segment_errors(rows, folder, texts.references, conclusions.tests, conclusions.plan.metric, pairs)
    return replace(conclusions, segments=errors)


def _collect(run: Path, folder: Path) -> None:
    """Copy the results of a run directory, or of the run directories in it, to the folder."""
    # A run that was evaluated at smaller depths has a result of each.
    files = sorted(run.glob("result*.json")) or sorted(run.glob("*/result*.json"))
    if not files:
        raise SharingError(
            f"--runs {run}: no result.json in it or one level below; create it with: fairseq-sharing evaluate"
        )
    for file in files:
        add_result(file, folder)
