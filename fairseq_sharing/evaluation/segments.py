"""Find the segments where two rows of a study differ most over all seeds, and show them with source and reference.

The page quotes the data, so it is a file of its own, which is not published with the results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.kept_hypotheses import read_kept
from fairseq_sharing.files import read_lines, write_text
from fairseq_sharing.preparation.manifest import MANIFEST, read_manifest
from fairseq_sharing.reporting.results import Row

FILE = "segments.html"
SHOWN = 3  # segments in each direction

_TEMPLATE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; }
dl { display: grid; grid-template-columns: max-content max-content 1fr; gap: .1rem 1rem; font-size: .9rem; }
dt { color: #444; } dd { margin: 0; overflow-wrap: anywhere; } dd.score { font-variant-numeric: tabular-nums; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>Segments where every seed of one row scores higher than every seed of the other, by sentence chrF2 (second column).
The segments with the largest gap come first. They show what kind of sentences differ, not which row is better.</p>
{%- for one in comparisons %}
<h2>{{ one.test }}: {{ one.name }} and {{ one.baseline }}</h2>
{%- if not one.segments %}
<p>No segment differs in all seeds.</p>
{%- endif %}
{%- for segment in one.segments %}
<h3>Line {{ segment.line }}: {{ segment.better }} is higher by {{ "%.1f"|format(segment.gap) }}</h3>
<dl>
<dt>source</dt><dd></dd><dd>{{ segment.source }}</dd>
<dt>reference</dt><dd></dd><dd>{{ segment.reference }}</dd>
{%- for system, score, text in segment.translations %}
<dt>{{ system }}</dt><dd class="score">{{ "%.1f"|format(score) }}</dd><dd>{{ text }}</dd>
{%- endfor %}
</dl>
{%- endfor %}
{%- endfor %}
</body>
</html>
"""


@dataclass(frozen=True)
class Segment:
    """A segment of a test set with the translations of two rows.

    Attributes:
        line: its number in the test set, from 1.
        better: the name of the row whose seeds all score higher.
        gap: the smallest difference between a seed of this row and one of the other.
        source, reference: the raw texts.
        translations: system, sentence chrF2 and text of each seed.
    """

    line: int
    better: str
    gap: float
    source: str
    reference: str
    translations: list[tuple[str, float, str]]


@dataclass(frozen=True)
class Comparison:
    """The segments of a test set where a row and the baseline differ most."""

    test: str
    name: str
    baseline: str
    segments: list[Segment]


def write_segments(rows: Sequence[Row], names: Sequence[str], folder: Path, data: Path) -> Path:
    """Write the page of the segments where each row and the first one differ most.

    Args:
        rows: the experiments; the first is the baseline.
        names: the name of each.
        folder: the folder of their results, which the page is written to.
        data: the prepared data directory.

    Returns:
        The file, ``segments.html``.

    Raises:
        SharingError: see `compare_rows`.
    """
    from jinja2 import Environment, StrictUndefined

    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(_TEMPLATE)
    comparisons = compare_rows(rows, names, folder, data)
    write_text(folder / FILE, template.render(title=f"Segments: {rows[0]['dataset']}", comparisons=comparisons) + "\n")
    return folder / FILE


def compare_rows(rows: Sequence[Row], names: Sequence[str], folder: Path, data: Path) -> list[Comparison]:
    """Compare each row with the first one, on every test set that both have hypotheses of.

    Args:
        rows, names, folder, data: see `write_segments`.

    Raises:
        SharingError: the data are those of another dataset, or do not fit the hypotheses, or a file of hypotheses is
            missing or changed.
    """
    manifest = read_manifest(data, ("dataset", "tests"))
    if not manifest:
        raise SharingError(f"{data / MANIFEST}: no such file; allowed: the prepared data directory")
    if manifest["dataset"] != rows[0]["dataset"]:
        raise SharingError(
            f"--data {data}: contains {manifest['dataset']}; allowed: {rows[0]['dataset']}, the dataset of the results"
        )
    found = []
    for test in manifest["tests"]:
        if "reference" not in test:
            continue
        texts = [list(read_lines(data / test[side])) for side in ("source", "reference")]
        systems = [_translations(row, test["name"], folder, texts[1]) for row in rows]
        for name, system in zip(names[1:], systems[1:], strict=True):
            if systems[0] and system:
                segments = _most_different(texts, (names[0], systems[0]), (name, system))
                found.append(Comparison(test["name"], name, names[0], segments))
    return found


Translations = Mapping[str, tuple[list[str], list[float]]]
"""For each system, ``<run>-seed<seed>``, its translations and their sentence chrF2."""


def _translations(row: Row, test: str, folder: Path, references: Sequence[str]) -> Translations:
    from sacrebleu.metrics import CHRF

    metric = CHRF()
    found = {}
    for result in row.results:
        score: dict[str, Any] = result["scores"].get(test, {})
        if "hypotheses" not in score:
            continue
        lines = read_kept(score, folder)
        if len(lines) != len(references):
            raise SharingError(
                f"{folder / score['hypotheses']} has {len(lines)} lines, the reference of {test} has {len(references)}"
            )
        pairs = zip(lines, references, strict=True)
        scores = [float(metric.sentence_score(line, [reference]).score) for line, reference in pairs]
        found[f"{result['run']}, seed {result['seed']}"] = (lines, scores)
    return found


def _most_different(
    texts: Sequence[Sequence[str]], one: tuple[str, Translations], other: tuple[str, Translations]
) -> list[Segment]:
    """Return the segments with the largest gap between all seeds of two rows, the better row's first."""
    sources, references = texts
    found = []
    for better, worse in ((other, one), (one, other)):
        gaps = [
            min(scores[i] for _, scores in better[1].values()) - max(scores[i] for _, scores in worse[1].values())
            for i in range(len(references))
        ]
        for i in sorted(range(len(gaps)), key=lambda i: -gaps[i])[:SHOWN]:
            if gaps[i] > 0:
                lines = [(name, s[i], t[i]) for _, systems in (other, one) for name, (t, s) in systems.items()]
                found.append(Segment(i + 1, better[0], gaps[i], sources[i], references[i], lines))
    return found
