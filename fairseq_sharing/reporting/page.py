"""Write the page of a study: one self-contained HTML file with tables, figures and run details."""

from __future__ import annotations

import base64
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairseq_sharing.reporting.conclusions import Conclusions
from fairseq_sharing.reporting.notes import notes
from fairseq_sharing.reporting.plot_style import DPI
from fairseq_sharing.reporting.results import Row
from fairseq_sharing.reporting.tables import TEXT_COLUMNS, sections, titles

if TYPE_CHECKING:
    from markupsafe import Markup

# Pixels per inch of the displayed figures: all at the same scale, at most as wide as the page.
_SCREEN_DPI = 100

_TEMPLATE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 76rem;
       margin: 2rem auto; padding: 0 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .4rem; text-align: right; vertical-align: top; border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #1a1a1a; vertical-align: bottom; }
td:not(.text) { white-space: pre-line; }
.text { text-align: left; }
tbody tr:hover { background: #f4f6f8; }
.notes { font-size: .85rem; color: #444; padding-left: 1.2rem; overflow-wrap: anywhere; }
figure { margin: 1.5rem 0 2.5rem; } img { max-width: 100%; height: auto; }
figcaption { font-size: .85rem; color: #444; max-width: 50rem; }
pre { background: #f4f6f8; padding: .8rem; font-size: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
summary { cursor: pointer; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .85rem; }
dt { color: #444; } dd { margin: 0; overflow-wrap: anywhere; }
</style>
</head>
<body>
{%- macro table(headers, cells) %}
<div class="wide"><table>
<thead><tr>
{%- for header in headers %}
<th scope="col"{% if header in text_columns %} class="text"{% endif %}>
{{- header|breakable -}}
</th>
{%- endfor %}</tr></thead>
<tbody>
{%- for line in cells %}
<tr>
{%- for cell in line %}
<td{% if headers[loop.index0] in text_columns %} class="text"{% endif %}>
{{- cell|breakable -}}
</td>
{%- endfor %}
</tr>
{%- endfor %}
</tbody></table></div>
{%- endmacro %}
<h1>{{ title }}</h1>
{{ table(first.headers, first.cells) }}
{%- for section in comparisons %}
<h2>{{ section.heading }}</h2>
{{ table(section.headers, section.cells) }}
{%- endfor %}
<ul class="notes">
{%- for note in notes %}
<li>{{ note }}</li>
{%- endfor %}
</ul>
{%- for picture in pictures %}
<figure>
<img src="data:image/png;base64,{{ picture.data }}" width="{{ picture.width }}" alt="{{ picture.caption }}">
<figcaption>{{ picture.caption }}</figcaption>
</figure>
{%- endfor %}
{%- for section in detailed %}
<h2>{{ section.heading }}</h2>
{{ table(section.headers, section.cells) }}
{%- endfor %}
{%- if examples %}
<h2>Example translations</h2>
<p>Sentences from an artificial corpus.</p>
{%- for example in examples %}
<dl>
<dt>source</dt><dd>{{ example.source }}</dd>
<dt>reference</dt><dd>{{ example.reference }}</dd>
{%- for model, hypothesis in example.hypotheses %}
<dt>{{ model }}</dt><dd>{{ hypothesis }}</dd>
{%- endfor %}
</dl>
{%- endfor %}
{%- endif %}
<h2>Run details</h2>
{%- for detail in details %}
<details><summary>{{ detail.name }}</summary>
<dl>
{%- for term, value in detail.facts %}
<dt>{{ term }}</dt><dd>{{ value }}</dd>
{%- endfor %}
</dl>
{%- if detail.command %}
<pre>{{ detail.command }}</pre>
{%- endif %}
</details>
{%- endfor %}
</body>
</html>
"""


def write_page(
    rows: Sequence[Row], conclusions: Conclusions, title: str, folder: Path, pictures: Sequence[tuple[str, str]]
) -> str:
    """Render the page of a study.

    Args:
        rows: the experiments, in order.
        conclusions: the comparison of their scores.
        title: heading of the page.
        folder: directory of the figures.
        pictures: file name and caption of each.

    Returns:
        The HTML text, with embedded figures.
    """
    from jinja2 import Environment, StrictUndefined

    first, *others = sections(rows, conclusions)
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["breakable"] = _breakable
    return environment.from_string(_TEMPLATE).render(
        title=title,
        first=first,
        comparisons=[section for section in others if not section.detailed],
        detailed=[section for section in others if section.detailed],
        notes=notes(rows, conclusions),
        text_columns=TEXT_COLUMNS,
        pictures=[_picture(folder / name, caption) for name, caption in pictures],
        examples=examples(rows),
        details=[_details(result) for row in rows for result in row.results],
    )


def _breakable(text: str) -> Markup:
    """Let a cell break inside of names, such as newstest2014, but not between ± and its number."""
    from markupsafe import Markup, escape

    kept = str(escape(text)).replace("± ", "±&nbsp;")
    return Markup(re.sub(r"_|(?<=[a-z])(?=\d{4})", r"\g<0><wbr>", kept))


def _picture(file: Path, caption: str) -> dict[str, Any]:
    data = file.read_bytes()
    pixels = int.from_bytes(data[16:20], "big")  # the width in the PNG header
    width = pixels * _SCREEN_DPI // DPI
    return {"data": base64.b64encode(data).decode(), "caption": caption, "width": width}


def examples(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Collect the quoted sentences, each with its translation by the first seed of every row.

    Returns:
        Source, reference and (model, hypothesis) pairs of each sentence; empty if no result quotes sentences.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row, title in zip(rows, titles(rows), strict=True):
        for example in row.results[0].get("examples", ()):
            entry = found.setdefault(
                (example["source"], example["reference"]),
                {"source": example["source"], "reference": example["reference"], "hypotheses": []},
            )
            entry["hypotheses"].append((title, example["hypothesis"]))
    return list(found.values())


def _details(result: dict[str, Any]) -> dict[str, Any]:
    seconds, memory = result.get("train_seconds"), result.get("peak_memory_bytes")
    device = result.get("device") or {}
    versions = result.get("versions") or {}
    facts = {
        "architecture": result.get("arch"),
        "updates, epochs": f"{result['updates']:,}, {result.get('epochs', '?')}",
        "training time": f"{seconds / 3600:.2f} hours" if seconds else None,
        "peak memory": f"{memory / 2**20:,.0f} MiB" if memory else None,
        "device": ", ".join(str(device[key]) for key in ("kind", "name", "count") if key in device),
        "averaged checkpoints": ", ".join(result.get("checkpoint", {}).get("averaged", ())),
        "commit": result.get("commit"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    return {
        "name": f"{result['run']}, seed {result['seed']}",
        "facts": [(term, value) for term, value in facts.items() if value],
        "command": shlex.join(result.get("command") or ()),
    }
