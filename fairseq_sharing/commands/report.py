"""Write the tables, plots and HTML page of a directory of result files."""

from __future__ import annotations

import argparse
from pathlib import Path

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
    parser.add_argument("--json", action="store_true", help="print the table and the file names as JSON on stdout")


def run(args: argparse.Namespace) -> None:
    """Write the report and print its table."""
    from rich.markup import escape
    from rich.table import Table

    from fairseq_sharing.reporting import tables
    from fairseq_sharing.reporting.page import examples
    from fairseq_sharing.reporting.report import write_report
    from fairseq_sharing.terminal import Console

    report = write_report(args.folder, args.runs)
    output = Console(markup=True)
    if args.json:
        headers, cells = tables.summary(report.rows)
        table = [dict(zip(headers, line, strict=True)) for line in cells]
        files = [str(file) for file in report.files]
        output.print_json(data={"table": table, "files": files}, highlight=output.is_terminal)
        return
    output.print(tables.terminal(report.rows, report.title))
    for note in tables.notes(report.rows):
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
        output.print(f"  {file}", highlight=False, markup=False, soft_wrap=True)
