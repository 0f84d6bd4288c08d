"""Write the tables, plots and HTML page of a directory of result files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fairseq_sharing.errors import SharingError
from fairseq_sharing.finite import finite_number
from fairseq_sharing.reporting.metrics import METRICS
from fairseq_sharing.terminal import Console, say

if TYPE_CHECKING:
    from fairseq_sharing.reporting.segments import RawTexts

HELP = "write the table, plots and HTML page of a directory of results"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``report``."""
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="directory of result files, one JSON per run, e.g. results/multi30k"
    )
    parser.add_argument(
        "--runs",
        type=Path,
        nargs="+",
        default=[],
        metavar="RUN",
        help="evaluated run directories, or one directory of runs; their results are copied to DIR first",
    )
    parser.add_argument(
        "--baseline",
        metavar="ROW",
        help="row that the others are compared with; default: of study.yaml in DIR, or the row vanilla",
    )
    parser.add_argument(
        "--primary", metavar="TEST", help="test set of the comparison, or mean for all; default: of study.yaml, or mean"
    )
    parser.add_argument(
        "--metric", choices=METRICS, help="metric of the comparison; default: of study.yaml, or bleu, or perplexity"
    )
    parser.add_argument(
        "--margin",
        type=finite_number,
        help="difference up to which rows count as equivalent; default: of study.yaml, or 0.3",
    )
    parser.add_argument(
        "--variance",
        choices=("pooled", "separate"),
        default="pooled",
        help="pool the variance of all rows, or use Welch's test",
    )
    parser.add_argument(
        "--family",
        default="rows",
        metavar="rows|FILE",
        help="compare all rows with the baseline, or the pairs of a file: two row names per line",
    )
    parser.add_argument(
        "--paired-seeds",
        action="store_true",
        help="compare runs with equal seeds, for rows that start from the same checkpoint",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DATA",
        help="prepared data of the study, such as data/multi30k: also show intervals that cover the choice of "
        "sentences, and write segments.md with the segments in which rows differ most (it quotes the test sets)",
    )
    parser.add_argument("--json", action="store_true", help="print the table and the file names as JSON on stdout")


def run(args: argparse.Namespace) -> None:
    """Write the report and print its tables."""
    from rich.markup import escape
    from rich.table import Table

    from fairseq_sharing.reporting.formats import terminal
    from fairseq_sharing.reporting.notes import notes
    from fairseq_sharing.reporting.page import examples
    from fairseq_sharing.reporting.report import write_report
    from fairseq_sharing.reporting.tables import sections

    report = write_report(args.folder, args.runs, vars(args), _read_tests(args.data) if args.data else None)
    output = Console(markup=True)
    if args.json:
        tables = {
            section.heading or "table": [dict(zip(section.headers, line, strict=True)) for line in section.cells]
            for section in sections(report.rows, report.conclusions)
            if not section.detailed
        }
        files = [str(file) for file in report.files]
        output.print_json(data={"table": tables.pop("table"), "comparisons": tables, "files": files}, highlight=False)
        return
    for table in terminal(report.rows, report.conclusions, report.title):
        output.print(table)
    for note in notes(report.rows, report.conclusions):
        output.print(note, highlight=False, markup=False)
    quoted = examples(report.rows)
    if quoted:
        output.print("\nExample translations (artificial sentences)", style="bold")
    for example in quoted:
        lines = Table.grid(padding=(0, 2, 0, 0))
        for name, text in (
            ("source", example["source"]),
            ("reference", example["reference"]),
            *example["hypotheses"],
        ):
            lines.add_row(escape(name), escape(text))
        output.print(lines)
        output.print()
    output.print("Written:", style="bold")
    for file in report.files:
        say(output, f"  {file}")


def _read_tests(data: Path) -> RawTexts:
    """Read the raw text of the test sets of prepared data."""
    from fairseq_sharing.files import inside, read_lines
    from fairseq_sharing.preparation.manifest import read_manifest
    from fairseq_sharing.reporting.segments import RawTexts

    tests = read_manifest(data).get("tests")
    if not tests:
        raise SharingError(f"--data {data}: names no test sets; allowed: a directory made by fairseq-sharing prepare")
    sources, references = (
        {test["name"]: list(read_lines(inside(data, test[side]))) for test in tests} for side in ("source", "reference")
    )
    return RawTexts(sources, references)
