"""Format the tables of a study: Markdown, CSV, LaTeX and terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from statistics import fmean

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table as RichTable

from fairseq_sharing.reporting.conclusions import Conclusions
from fairseq_sharing.reporting.latex import ascii_latex
from fairseq_sharing.reporting.metrics import METRICS
from fairseq_sharing.reporting.notes import notes
from fairseq_sharing.reporting.recipes import differences
from fairseq_sharing.reporting.results import Row, Spread, scored_sets
from fairseq_sharing.reporting.tables import TEXT_COLUMNS, Section, sections

_COLUMNS = (
    *("run", "strategy", "unique_layers", "layers", "parameters_unique", "parameters_effective", "parameters_mean"),
    *("recipe", "tokens_per_second", "updates", "seeds", "test_set", "segments"),
)
_NOT_IN_TERMINAL = {"Effective parameters", "Peak memory, GiB", "Recipe", "g", "Permutation p, not adjusted"}


def markdown(rows: Sequence[Row], conclusions: Conclusions, title: str, pictures: Sequence[tuple[str, str]]) -> str:
    """Format the page of a study in Markdown.

    Args:
        rows: the experiments.
        conclusions: the comparison of their scores.
        title: heading of the page.
        pictures: file name and caption of each figure.
    """
    first, *others = sections(rows, conclusions)
    parts = [f"# {title}", _table(first, "github")]
    parts += [_headed(section) for section in others if not section.detailed]
    parts += ["## Notes", "\n".join(f"- {note}" for note in notes(rows, conclusions))]
    parts += [_headed(section) for section in others if section.detailed]
    for file, caption in pictures:
        parts += [f"![{file.removesuffix('.png').replace('_', ' ')}]({file})", caption]
    return "\n\n".join(parts) + "\n"


def latex(rows: Sequence[Row], conclusions: Conclusions) -> str:
    """Format the tables for LaTeX (booktabs), except for the detailed ones, with the notes as comments above."""
    shown = [section for section in sections(rows, conclusions) if not section.detailed]
    comments = "".join(f"% {note}\n" for note in notes(rows, conclusions))
    tables = (f"% {one.heading}\n" * bool(one.heading) + _table(one, "latex_booktabs") + "\n" for one in shown)
    return ascii_latex(comments + "\n".join(tables))


def _headed(section: Section) -> str:
    return f"## {section.heading}\n\n{_table(section, 'github')}"


def _table(section: Section, form: str) -> str:
    from tabulate import tabulate

    aligned = ["left" if header in TEXT_COLUMNS else "right" for header in section.headers]
    return tabulate(section.cells, section.headers, tablefmt=form, disable_numparse=True, colalign=aligned)


def comma_separated(rows: Sequence[Row]) -> str:
    """Format all numbers of the study as CSV, unrounded, one experiment and test set per line."""
    metrics = [name for name in METRICS if any(row.score(test, name) for row in rows for test in scored_sets([row]))]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*_COLUMNS, *(f"{name}{end}" for name in metrics for end in ("", "_deviation"))])
    for row, recipe in zip(rows, differences(rows), strict=True):
        for test in scored_sets([row]):
            scores = [result["scores"][test] for result in row.results if test in result["scores"]]
            writer.writerow(
                [
                    row.run,
                    row.strategy,
                    row.sizes("unique_layers"),
                    row.sizes("layers"),
                    *(round(fmean(r["parameters"][kind] for r in row.results)) for kind in ("unique", "effective")),
                    round(fmean(r.get("mean_parameters", r["parameters"]["unique"]) for r in row.results)),
                    recipe,
                    "" if row.speed is None else row.speed.mean,
                    " ".join(str(result["updates"]) for result in row.results),
                    " ".join(str(result["seed"]) for result in row.results),
                    test,
                    scores[0]["segments"],
                    *(number for name in metrics for number in _numbers(row.score(test, name))),
                ]
            )
    return stream.getvalue()


def _numbers(spread: Spread | None) -> tuple[float | str, float | str]:
    if spread is None:
        return "", ""
    return spread.mean, "" if spread.deviation is None else spread.deviation


def terminal(rows: Sequence[Row], conclusions: Conclusions, title: str) -> Iterator[RichTable]:
    """Make the tables for a terminal, without those and without the columns that only the page has."""
    for section in sections(rows, conclusions):
        if section.in_terminal:
            yield _rich(section, section.heading or title, rows)


def _rich(section: Section, title: str, rows: Sequence[Row]) -> RichTable:
    table = RichTable(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    left_out = set(_NOT_IN_TERMINAL)
    if not section.heading:
        left_out |= {"n"} if all(len(row.results) == 1 for row in rows) else set()
        left_out |= {"Unique parameters", "Tokens/s", "n"} if "Mean unique parameters" in section.headers else set()
    shown = [index for index, header in enumerate(section.headers) if header not in left_out]
    for index in shown:
        is_text = section.headers[index] in TEXT_COLUMNS
        header = section.headers[index].replace(" ", "\n").replace("_", "_\n")
        table.add_column(header, justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold")
    for line in section.cells:
        table.add_row(*(escape(_stacked(line[index], section.headers[index])) for index in shown))
    return table


def _stacked(cell: str, header: str) -> str:
    """Break a cell into several lines, to save width."""
    cell = cell.replace(" ±", "\n±").replace(" to ", "\nto ").replace(" [", "\n[")
    return cell.replace(", ", ",\n") if header == "With sentences" else cell
