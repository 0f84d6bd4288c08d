"""Each promise of docs/reliability.md is held by tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
ROWS = [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("| ")]
PROMISES = [(cells[0].strip(), cells[1]) for cells in ROWS if cells[0].strip() != "promise"]


def names_in(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_promise_names_tests_and_every_test_exists():
    assert len(PROMISES) > 25
    for promise, cell in PROMISES:
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", cell)
        assert named, promise
        assert len(named) == cell.count("`") // 2, f"not a test: {cell}"
        for file, name in named:
            assert name in names_in(ROOT / file), f"{promise}: {file}::{name}"
