"""Format the tables of a study, per experiment and per run: Markdown, CSV, LaTeX and terminal output."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table as RichTable

from fairseq_sharing.reporting.results import Row, baselines, scored_sets, signatures

Cells = list[list[str]]


def summary(rows: Sequence[Row]) -> tuple[list[str], Cells]:
    """Make the main table: one experiment per row, BLEU and p-value per test set.

    Args:
        rows: the experiments, in order.

    Returns:
        The headers and the cells.
    """
    tests = scored_sets(rows)
    changing = any(row.schedule for row in rows)
    headers = ["Model", "M", "N", "Unique parameters", "Effective parameters"]
    headers += [*(["Mean unique parameters", "Peak memory, GiB"] if changing else []), "Tokens/s", "Updates", "Seeds"]
    cells = []
    for row, name in zip(rows, names(rows), strict=True):
        line = [
            name,
            row.sizes("unique_layers"),
            row.sizes("layers"),
            row.parameters("unique"),
            row.parameters("effective"),
            *([row.mean_parameters, row.peak_memory] if changing else []),
            row.speed.format(0) if row.speed else "-",
            row.updates,
            str(len(row.results)),
        ]
        cells.append(line + [_bleu(row, test) for test in tests])
    return headers + [f"BLEU {test}" for test in tests], cells


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
    """Make the detailed table: one run and test set per row, with confidence interval, chrF and p-value."""
    headers = ["Run", "Seed", "Test set", "Segments", "BLEU", "95% interval", "chrF", "p"]
    cells = []
    for row in rows:
        for result in row.results:
            for test, score in result["scores"].items():
                low, high = score["bleu_interval"]
                cells.append(
                    [
                        result["run"],
                        str(result["seed"]),
                        test,
                        f"{score['segments']:,}",
                        f"{score['bleu']:.2f}",
                        f"{low:.2f} to {high:.2f}",
                        f"{score['chrf']:.2f}",
                        "-" if score["p_value"] is None else f"{score['p_value']:.3f}",
                    ]
                )
    return headers, cells


def notes(rows: Sequence[Row]) -> list[str]:
    """Explain how to read the tables: units, checkpoints, search settings, signatures and baseline."""
    lines = [
        "M: parameter sets per stack. N: layers per stack. Stacks that differ are written as encoder+decoder."
        " Unique parameters count a shared tensor once; effective parameters count it once per layer that uses it."
        " Tokens/s: target tokens per second in training.",
        "Sharing saves parameters, not computation: a model with N layers computes N layers, regardless of M.",
    ]
    if any(row.schedule for row in rows):
        lines.append(
            "If sharing changed during training, M and the unique parameters are those at the end. Mean unique"
            " parameters are averaged over all updates and count only trained parameters."
        )
    if any(len(row.results) > 1 for row in rows):
        lines.append("±: standard deviation over seeds.")
    compared = baselines(rows)
    several = any(len(row.results) > 1 and row.run in runs for runs in compared.values() for row in rows)
    only = " Rows with several seeds have no p-value; each of their runs has one." if several else ""
    if len(compared) == 1:
        lines += [f"p: paired bootstrap test on BLEU against {name}.{only}" for name in compared]
    elif compared:
        pairs = "; ".join(f"{', '.join(runs)} against {name}" for name, runs in compared.items())
        lines.append(f"p: paired bootstrap test on BLEU, {pairs}.{only}")
    lines += _recipes(rows)
    for metric, found in signatures(rows).items():
        name = {"bleu": "BLEU", "chrf": "chrF"}.get(metric, metric)
        if len(found) == 1:
            lines.append(f"sacreBLEU signature for {name}: {found[0]}")
        elif found:
            lines.append(f"{name} scores with different signatures are not comparable: {'; '.join(found)}")
    machines: dict[str, list[str]] = {}
    for row in rows:
        machines.setdefault(machine(row), []).append(row.run)
    if len(machines) == 1:
        lines += [f"Trained on: {name}." for name in machines if name]
    else:
        trained = "; ".join(f"{', '.join(runs)} on {name or 'an unknown machine'}" for name, runs in machines.items())
        lines.append(f"Trained: {trained}. Tokens/s are not comparable between machines.")
    return lines


def machine(row: Row) -> str:
    """Name the machine that a row was trained on; empty if no result records it."""
    return " and ".join(sorted({_device(result) for result in row.results} - {""}))


def markdown(rows: Sequence[Row], title: str, pictures: Sequence[tuple[str, str]]) -> str:
    """Format the page of a study in Markdown.

    Args:
        rows: the experiments.
        title: heading of the page.
        pictures: file name and caption of each figure.
    """
    from tabulate import tabulate

    parts = [f"# {title}"]
    for heading, (headers, cells) in (("", summary(rows)), ("## Results per run", by_run(rows))):
        aligned = ["left" if header in TEXT_COLUMNS else "right" for header in headers]
        table = tabulate(cells, headers, tablefmt="github", disable_numparse=True, colalign=aligned)
        parts += [heading, table] if heading else [table]
        if not heading:
            parts.append("\n".join(f"- {note}" for note in notes(rows)))
    for file, caption in pictures:
        parts += [f"![{file.removesuffix('.png').replace('_', ' ')}]({file})", caption]
    return "\n\n".join(parts) + "\n"


def latex(rows: Sequence[Row]) -> str:
    """Format the main table for LaTeX (booktabs), with the notes as comments above it."""
    from tabulate import tabulate

    headers, cells = summary(rows)
    aligned = ["left" if header in TEXT_COLUMNS else "right" for header in headers]
    table = tabulate(cells, headers, tablefmt="latex_booktabs", disable_numparse=True, colalign=aligned)
    return "".join(f"% {note}\n" for note in notes(rows)) + table + "\n"


def comma_separated(rows: Sequence[Row]) -> str:
    """Format all numbers of the study as CSV, unrounded, one experiment and test set per line."""
    columns = (
        "run,strategy,unique_layers,layers,parameters_unique,parameters_effective,parameters_mean,tokens_per_second,"
        "updates,seeds,"
        "test_set,segments,bleu,bleu_deviation,chrf,chrf_deviation,p_values"
    )
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns.split(","))
    for row in rows:
        for test in scored_sets([row]):
            scores = [result["scores"][test] for result in row.results if test in result["scores"]]
            bleu, chrf = row.score(test, "bleu"), row.score(test, "chrf")
            assert bleu
            assert chrf
            writer.writerow(
                [
                    row.run,
                    row.strategy,
                    row.sizes("unique_layers"),
                    row.sizes("layers"),
                    *(round(fmean(r["parameters"][kind] for r in row.results)) for kind in ("unique", "effective")),
                    round(fmean(r.get("mean_parameters", r["parameters"]["unique"]) for r in row.results)),
                    "" if row.speed is None else row.speed.mean,
                    " ".join(str(result["updates"]) for result in row.results),
                    " ".join(str(result["seed"]) for result in row.results),
                    test,
                    scores[0]["segments"],
                    bleu.mean,
                    "" if bleu.deviation is None else bleu.deviation,
                    chrf.mean,
                    "" if chrf.deviation is None else chrf.deviation,
                    " ".join(str(score["p_value"]) for score in scores if score["p_value"] is not None),
                ]
            )
    return stream.getvalue()


def stacked(cell: str) -> str:
    """Move the p-value of a cell to a separate line."""
    score, bracket, p_value = cell.partition(" (p")
    return f"{score}\np{p_value.removesuffix(')')}" if bracket else cell


def terminal(rows: Sequence[Row], title: str) -> RichTable:
    """Make the main table for a terminal, without the columns that only the page has."""
    headers, cells = summary(rows)
    table = RichTable(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    left_out = {"Effective parameters", "Peak memory, GiB"}
    left_out |= {"Seeds"} if all(len(row.results) == 1 for row in rows) else set()
    left_out |= {"Unique parameters", "Tokens/s", "Seeds"} if "Mean unique parameters" in headers else set()
    shown = [index for index, header in enumerate(headers) if header not in left_out]
    for index in shown:
        is_text = headers[index] in TEXT_COLUMNS
        header = headers[index].replace(" ", "\n").replace("_", "_\n")
        table.add_column(header, justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold")
    for line in cells:
        cells_shown = (stacked(line[index]).replace(" ±", "\n±").replace(" to ", "\nto ") for index in shown)
        table.add_row(*map(escape, cells_shown))
    return table


TEXT_COLUMNS = ("Model", "Run", "Test set")


def _bleu(row: Row, test: str) -> str:
    bleu = row.score(test, "bleu")
    if bleu is None:
        return "-"
    p_value = row.p_value(test)
    return bleu.format() + (f" ({p_value})" if p_value else "")


def _recipes(rows: Sequence[Row]) -> list[str]:
    """Describe the averaged checkpoints and the search settings, per run if they differ."""
    by_recipe: dict[str, list[str]] = {}
    for row in rows:
        for result in row.results:
            by_recipe.setdefault(_recipe(result), []).append(f"{result['run']} (seed {result['seed']})")
    if len(by_recipe) == 1:
        return list(by_recipe)
    return [f"{', '.join(runs)}: {recipe}" for recipe, runs in by_recipe.items()]


def _recipe(result: dict[str, Any]) -> str:
    files = result.get("checkpoint", {}).get("averaged", ())
    averaged = len(files)
    kind = "mid-epoch checkpoints" if any("_" in file for file in files) else "epoch checkpoints"
    search = result.get("generation", {})
    lenpen = f"{search.get('lenpen', '?')}" + "".join(
        f", {value} for {test}" for test, value in (search.get("test_lenpen") or {}).items()
    )
    checkpoints = "the checkpoint of the last epoch" if averaged == 1 else f"the average of the last {averaged} {kind}"
    beam = search.get("beam", "?")
    return f"Decoded with {checkpoints}, beam {beam}, length penalty {lenpen}; scored against raw references."


def _device(result: dict[str, Any]) -> str:
    device = result.get("device") or {}
    if not device:
        return ""
    unit = "GPU" if device.get("kind") == "cuda" else "CPU core"
    count = device.get("count", 1)
    return f"{device.get('name', device.get('kind', '?'))}, {count} {unit}{'s' * (count != 1)}"
