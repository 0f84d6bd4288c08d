"""The layout of the package; pyproject.toml contains the layers."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[3] / "fairseq_sharing"
LINES = 400


def test_files_are_short():
    lengths = {file.relative_to(PACKAGE): len(file.read_text().splitlines()) for file in PACKAGE.rglob("*.py")}
    assert {str(file): length for file, length in lengths.items() if length > LINES} == {}
    assert len(lengths) > 100
