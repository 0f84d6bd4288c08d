"""The page of a study: its title and its width."""

import re
from html.parser import HTMLParser

import pytest
from evaluation_results import result, write

from fairseq_sharing.reporting import figures
from fairseq_sharing.reporting.plot_style import widest
from fairseq_sharing.reporting.report import write_report


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Skip the figures, which take long and are not tested here."""
    monkeypatch.setattr(figures, "draw", lambda *_: [])


@pytest.mark.parametrize(
    ("folder", "declared", "title"),
    [
        ("results/multi30k", None, "multi30k"),
        ("results/changing_sharing", None, "changing_sharing (multi30k)"),
        ("results/moeut/multi30k", None, "moeut/multi30k"),
        ("runs/moeut/report", None, "moeut (multi30k)"),
        ("mine", None, "mine (multi30k)"),
        ("mine", "depth", "depth (multi30k)"),
    ],
)
def test_a_title_names_the_study_and_its_dataset(tmp_path, folder, declared, title):
    folder = write(tmp_path / folder, result())
    if declared:
        (folder / "study.yaml").write_text(f"study: {declared}\n")
    assert write_report(folder).title == f"Sharing parameters across layers: {title}"


class _Columns(HTMLParser):
    """Collects the cells of a page's tables, with a space where a line can break."""

    def __init__(self, text):
        super().__init__()
        self.tables, self._cell = [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._cell = True
        elif tag == "wbr":
            self.tables[-1][-1][-1] += " "

    def handle_data(self, data):
        if self._cell:
            self.tables[-1][-1][-1] += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._cell = None


def test_tables_fit_a_window_of_1280_pixels(tmp_path):
    results = []
    for name, sharing in (("vanilla", "none"), ("cycle_rev", "cycle_rev")):
        for seed in (1, 2):
            content = result(name, sharing, seed, 37.5, schedule="unshare", peak_memory_bytes=2**30 * seed)
            (score,) = content["scores"].values()
            content["scores"] = {f"newstest{year}": score for year in range(2010, 2017)}
            content["parameters"] = {"unique": 60_000_000 + seed, "effective": 250_000_000}
            content["macs"] = 1_500_000_000 + seed * 1_000_000
            results.append(content)
    folder = write(tmp_path, *results)
    write_report(folder)
    text = (folder / "index.html").read_text(encoding="utf-8")
    body, padding = 76 * 16, 2 * 0.4 * 16  # as in the style sheet; 1rem is 16 pixels
    assert "padding: .3rem .4rem" in text
    assert "td:not(.text) { white-space: pre-line; }" in text
    for table in _Columns(text).tables:
        width = sum(
            padding + 72 * widest([word for cell in column for word in re.split(r"[ \n]", cell)], 14.4)
            for column in zip(*table, strict=True)
        )
        assert width <= body, table[0]
