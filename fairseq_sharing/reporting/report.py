"""Write the report of a study (tables, figures and HTML page) from its result files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import write_text
from fairseq_sharing.reporting import paper, tables
from fairseq_sharing.reporting.comparability import check_comparisons, check_tokenizers
from fairseq_sharing.reporting.results import Row, add_result, read_result, read_rows, scored_sets


@dataclass(frozen=True)
class Report:
    """A study's rows and the files of its report."""

    title: str
    rows: Sequence[Row]
    files: Sequence[Path]


def write_report(folder: Path, runs: Iterable[Path] = ()) -> Report:
    """Write table.md, table.csv, table.tex, the figures and index.html of a study.

    If the study has rows and test sets of the paper's table, paper.md compares them.

    Args:
        folder: the result files, one JSON file per run; the report is written to this folder.
        runs: run directories, or directories of them, whose results are copied to the folder first.

    Returns:
        The rows and the files written.

    Raises:
        SharingError: no result, results that do not belong together, or a missing package such as matplotlib.
    """
    try:
        from fairseq_sharing.reporting import figures, page

        figures.require_matplotlib()
    except ImportError as error:
        raise SharingError(
            f"report requires {error.name}; install it with: pip install 'fairseq-sharing[report]'"
        ) from error
    for run in runs:
        _collect(run, folder)
    rows = read_rows(folder)
    results = [result for row in rows for result in row.results]
    check_tokenizers(results, folder)
    check_comparisons(results, folder)
    title = f"Sharing parameters across layers: {rows[0]['dataset']}"
    pictures = figures.draw(rows, folder)
    texts: dict[str, Callable[[], str]] = {
        "table.md": lambda: tables.markdown(rows, title, pictures),
        "table.csv": lambda: tables.comma_separated(rows),
        "table.tex": lambda: tables.latex(rows),
        "index.html": lambda: page.write_page(rows, title, folder, pictures),
    }
    if any(paper.paper_row(row) for row in rows) and any(test in paper.TESTS for test in scored_sets(rows)):
        texts["paper.md"] = lambda: paper.markdown(rows, title)
    for name, make in texts.items():
        write_text(folder / name, make())
    return Report(title, rows, [folder / name for name in (*texts, *figures.all_formats(pictures))])


def _collect(run: Path, folder: Path) -> None:
    """Copy the results of a run directory, or of the run directories in it, to the folder."""
    files = [run / "result.json"] if (run / "result.json").is_file() else sorted(run.glob("*/result.json"))
    if not files:
        raise SharingError(
            f"--runs {run}: no result.json in it or one level below; create it with: fairseq-sharing evaluate"
        )
    for file in files:
        read_result(file)
        add_result(file.read_text(encoding="utf-8"), folder)
