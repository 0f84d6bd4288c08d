"""Write the tables, the pictures and the HTML page of a study from its result files."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "make the table, the plots and the HTML page of a folder of results"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="result files, one JSON a run, e.g. results/multi30k")
    parser.add_argument(
        "--runs",
        type=Path,
        nargs="+",
        default=[],
        metavar="RUN",
        help="evaluated run directories, or a directory of them, whose results are copied to DIR first",
    )
    parser.add_argument("--json", action="store_true", help="print table and file names as JSON on standard output")


def run(args: argparse.Namespace) -> None:
    """Write the report and show its table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from fairseq_sharing.reporting import tables
    from fairseq_sharing.reporting.page import examples
    from fairseq_sharing.reporting.report import write_report

    report = write_report(args.folder, args.runs)
    output = Console()
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
