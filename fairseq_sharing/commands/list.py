"""List studies, data recipes, prepared data, and runs with their state, scores and disk use."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairseq_sharing.terminal import Console, say

if TYPE_CHECKING:
    from rich.table import Table

HELP = "list studies, data and runs"

_WHAT = ("studies", "data", "runs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``list``."""
    parser.add_argument(
        "what", nargs="*", type=_what, metavar="studies|data|runs", help="what to list; all if not given"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="directory of all runs")
    parser.add_argument("--data", type=Path, default=Path("data"), metavar="DIR", help="directory of all prepared data")
    parser.add_argument("--json", action="store_true", help="print JSON on stdout")


def _what(text: str) -> str:
    if text not in _WHAT:
        raise argparse.ArgumentTypeError(f"{text}: allowed: {', '.join(_WHAT)}")
    return text


def run(args: argparse.Namespace) -> None:
    """Print what is at hand."""

    listed = {name: _COLLECT[name](args) for name in args.what or _WHAT}
    output = Console()
    if args.json:
        output.print_json(data=listed, highlight=output.is_terminal)
        return
    for name, entries in listed.items():
        if name == "data":
            from fairseq_sharing.preparation.recipe import recipe_names

            say(output, f"data recipes: {', '.join(recipe_names())}\n")
        if not entries:
            folder = {"data": args.data, "runs": args.runs}.get(name, "")
            output.print(f"{name}: none in {folder}\n", highlight=False)
            continue
        table = _table(name, list(entries[0]))
        for entry in entries:
            table.add_row(*(str(value) for value in entry.values()))
        output.print(table)


def _studies(args: argparse.Namespace) -> list[dict[str, Any]]:
    from fairseq_sharing.studies.listing import studies

    return [
        {
            "study": study.name,
            "rows": len(study.rows),
            "runs": sum(len(study.seeds_of(row)) for row in study.rows),
            "data": study.data.name,
            "question": study.question,
        }
        for study in studies()
    ]


def _data(args: argparse.Namespace) -> list[dict[str, Any]]:
    from fairseq_sharing.studies.listing import prepared_data, size_in_words

    return [
        {"directory": str(data.path), "contents": data.description, "disk": size_in_words(data.disk)}
        for data in prepared_data(args.data)
    ]


def _runs(args: argparse.Namespace) -> list[dict[str, Any]]:
    from fairseq_sharing.studies.listing import runs, scores_in_words, size_in_words

    return [
        {
            "directory": str(run.path),
            "state": f"{run.state.state}, {run.state.fraction:.0%}" if run.state else f"damaged: {run.error}",
            "score": scores_in_words(run.state.scores if run.state else None),
            "disk": size_in_words(run.disk),
        }
        for run in runs(args.runs)
    ]


_COLLECT = {"studies": _studies, "data": _data, "runs": _runs}


def _table(title: str, columns: list[str]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in ("rows", "runs", "disk") else "left")
    return table
