"""Compare results with the table of Takase & Kiyono (2023)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fairseq_sharing.reporting.results import Row, scored_sets

TESTS = tuple(f"newstest{year}" for year in range(2010, 2017))
DATASET = "wmt16_en_de"
_MACHINE = ("kind", "name", "count")  # fields of a result's device


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's table.

    Args:
        title: name in the paper, with N.
        parameters: number of parameters, in millions.
        average: sacreBLEU, the mean over ``TESTS``.
        scores: sacreBLEU per test set; empty if the paper reports only the average.
        speed: training tokens per second, relative to Vanilla; None if not reported.
    """

    title: str
    parameters: int
    average: float
    scores: tuple[float, ...] = ()
    speed: float | None = None


# Source: Takase & Kiyono 2023, "Lessons on Parameter Sharing across Layers in Transformers", their WMT16 En-De table;
# speeds: its first version (arXiv 2104.06022v1); for Universal N=12: 0.52 / 2.02 from the 2023 version.
ROWS = {
    "vanilla": PaperRow("Vanilla", 61, 26.57, (24.16, 22.01, 22.33, 26.13, 27.13, 29.83, 34.41), 1.00),
    "admin": PaperRow("Admin", 61, 26.48, (24.14, 21.93, 22.25, 26.14, 27.05, 29.59, 34.23), 0.97),
    "universal_n6": PaperRow("Universal", 63, 26.90, (24.37, 22.33, 22.70, 26.40, 27.65, 30.24, 34.60), 0.48),
    "universal_n12": PaperRow("Universal, N=12", 63, 26.77, (), 0.26),
    "vanilla_big": PaperRow("Vanilla (big)", 210, 26.81, (24.31, 22.21, 22.75, 26.39, 28.28, 30.35, 33.40), 0.39),
    "sequence_n12": PaperRow("Sequence, N=12", 61, 27.13, (24.65, 22.32, 22.83, 26.98, 27.88, 30.27, 34.99), 0.63),
    "cycle_n12": PaperRow("Cycle, N=12", 61, 27.04, (24.51, 22.43, 22.69, 26.61, 27.91, 30.37, 34.77), 0.63),
    "cycle_rev_n12": PaperRow("Cycle (rev), N=12", 61, 27.08, (24.66, 22.47, 22.87, 26.68, 27.72, 30.37, 34.81), 0.63),
    "sequence_n18": PaperRow("Sequence, N=18", 61, 27.02, (24.53, 22.44, 22.73, 26.59, 27.73, 30.30, 34.80), 0.47),
    "cycle_n18": PaperRow("Cycle, N=18", 61, 27.25, (24.74, 22.60, 23.04, 26.89, 28.14, 30.54, 34.79), 0.47),
    "cycle_rev_n18": PaperRow("Cycle (rev), N=18", 61, 27.31, (24.93, 22.77, 23.09, 26.88, 28.09, 30.60, 34.84), 0.47),
}


@dataclass(frozen=True)
class Difference:
    """Our score on a test set and the paper's.

    Args:
        ours: BLEU, the mean over seeds.
        paper: the paper's BLEU.
        interval: 95% interval of ours minus the paper's over training runs; it excludes the paper's own spread, which
            is unknown. None for one seed.
    """

    ours: float
    paper: float
    interval: tuple[float, float] | None

    @classmethod
    def of(cls, row: Row, test: str, paper: float) -> Difference | None:
        """Compare a row's score; return None if the test set was not scored."""
        seeds = [[result["scores"][test]] for result in row.results if test in result["scores"]]
        return cls._of_seeds(seeds, paper) if seeds else None

    @classmethod
    def of_average(cls, row: Row, paper: float) -> Difference | None:
        """Compare a row's mean over all test sets of the paper; return None if one was not scored."""
        if any(test not in result["scores"] for result in row.results for test in TESTS):
            return None
        return cls._of_seeds([[result["scores"][test] for test in TESTS] for result in row.results], paper)

    @classmethod
    def _of_seeds(cls, seeds: Sequence[Sequence[dict[str, Any]]], paper: float) -> Difference:
        from scipy import stats

        values = [statistics.fmean(score["bleu"] for score in scores) for scores in seeds]
        mean = statistics.fmean(values)
        if len(values) == 1:
            return cls(mean, paper, None)
        half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
        return cls(mean, paper, (mean - half - paper, mean + half - paper))

    def __str__(self) -> str:
        text = f"{self.ours:.2f} / {self.paper:.2f} / {self.ours - self.paper:+.2f}"
        return text if self.interval is None else f"{text} ({self.interval[0]:+.2f} to {self.interval[1]:+.2f})"


def compare(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Make the table that compares our rows with the paper's.

    Args:
        rows: the experiments; those that are not in the paper are omitted.

    Returns:
        The headers and the cells.
    """
    tests = [test for test in TESTS if test in scored_sets(rows)]
    headers = ["Model", "Parameters", "Parameters (paper)", "Speed", "Speed (paper)", "Average"]
    vanilla = next((row for row in rows if row.run == "vanilla"), None)
    cells = []
    for row in sorted((row for row in rows if row.run in ROWS), key=lambda row: list(ROWS).index(row.run)):
        paper = ROWS[row.run]
        cells.append(
            [
                paper.title,
                f"{row['parameters']['unique']:,}",
                f"{paper.parameters}M",
                _speed(row, vanilla),
                "-" if paper.speed is None else f"{paper.speed:.2f}",
                str(Difference.of_average(row, paper.average) or f"- / {paper.average:.2f}"),
                *(_cell(row, paper, test) for test in tests),
            ]
        )
    return headers + tests, cells


def notes(rows: Sequence[Row]) -> list[str]:
    """Explain how to read the comparison."""
    lines = [
        "Scores are sacreBLEU: ours / the paper's / the difference. Several seeds have Student's 95% interval "
        "over training runs, which excludes the paper's own spread; one seed has none and makes no statement about "
        "the method. Average: mean over newstest2010 to newstest2016, if all of them are scored.",
        "Speed: target tokens per second in training, relative to Vanilla, if both were trained on the same kind of "
        "machine. The paper's speeds were measured on its GPUs.",
    ]
    dataset = rows[0]["dataset"]
    if dataset != DATASET:
        lines.append(
            f"The paper trained on WMT16 (4.5M pairs), these rows on {dataset}. The score differences are not evidence "
            "about the method; only the order of the rows and their speeds are comparable."
        )
    splits = _compound_splits(rows)
    if splits:
        lines.append(
            f"Tokenized BLEU with compounds split on newstest2014 (not comparable with sacreBLEU): {'; '.join(splits)}."
        )
    return lines


def markdown(rows: Sequence[Row], title: str) -> str:
    """Format the comparison as a Markdown page."""
    from tabulate import tabulate

    headers, cells = compare(rows)
    table = tabulate(cells, headers, tablefmt="github", disable_numparse=True, colalign=["left"] + ["right"] * 5)
    heading = f"# {title}: comparison with Takase & Kiyono (2023)"
    return "\n\n".join([heading, table, "\n".join(f"- {note}" for note in notes(rows))]) + "\n"


def _speed(row: Row, vanilla: Row | None) -> str:
    if vanilla is None or row.speed is None or vanilla.speed is None:
        return "-"
    # Speeds are comparable only if all seeds of both rows were trained on the same kind of machine.
    machines = {tuple(result["device"][key] for key in _MACHINE) for result in row.results + vanilla.results}
    if len(machines) > 1:
        return "-"
    return f"{row.speed.mean / vanilla.speed.mean:.2f}"


def _cell(row: Row, paper: PaperRow, test: str) -> str:
    if paper.scores:
        return str(Difference.of(row, test, paper.scores[TESTS.index(test)]) or "-")
    score = row.score(test, "bleu")
    return f"{score.mean:.2f} / -" if score else "-"


def _compound_splits(rows: Sequence[Row]) -> list[str]:
    found = []
    for row in rows:
        scores = [result["scores"].get("newstest2014", {}).get("compound_split_bleu") for result in row.results]
        known = [score for score in scores if score is not None]
        if known:
            title = ROWS[row.run].title if row.run in ROWS else row.title
            found.append(f"{title} {statistics.fmean(known):.2f}")
    return found
