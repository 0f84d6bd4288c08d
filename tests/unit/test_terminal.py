"""Text from data, results and users is printed as text: no escapes, no markup, any terminal."""

from __future__ import annotations

import io
import logging
import re
from pathlib import Path

import pytest
from rich.table import Table

import fairseq_sharing
from fairseq_sharing.terminal import Console, LogFormatter, one_line, visible

ATTACK = "a\x1b]0;title\x07\x1b[31mred\x9b2J\x7f"
SHOWN = "a\\x1b]0;title\\x07\\x1b[31mred\\x9b2J\\x7f"


def printed(*values: object, **options: object) -> str:
    output = io.StringIO()
    Console(file=output, width=200, **options).print(*values)
    return output.getvalue()


def test_control_characters_are_visible():
    assert visible(ATTACK) == SHOWN
    assert visible("ä\tb\n") == "ä\tb\n"
    assert one_line("a\nb\r\nc\td\u2028e\ud800") == "a b c d e\\ud800"


def test_a_console_prints_escapes_and_markup_as_text():
    assert printed(f"[bold]{ATTACK}[/bold]") == f"[bold]{SHOWN}[/bold]\n"
    table = Table(title=ATTACK, show_header=False, box=None)
    table.add_row(ATTACK)
    assert "\x1b" not in printed(table)
    assert printed(table).count(SHOWN) == 2


def test_a_terminal_still_gets_colors():
    assert "\x1b[1m" in printed("x", force_terminal=True) or "\x1b[1m" in _styled()
    assert "\\x1b" not in _styled()


def _styled() -> str:
    output = io.StringIO()
    Console(file=output, force_terminal=True, color_system="truecolor", width=80).print("x", style="bold")
    return output.getvalue()


def test_json_is_ascii():
    output = io.StringIO()
    Console(file=output, width=80).print_json(data={"a": "ä\x1b\x9b"})
    assert output.getvalue().isascii()
    assert "\x1b" not in output.getvalue()


def test_log_messages_are_text():
    record = logging.LogRecord("a", logging.WARNING, "", 0, "%s", (ATTACK,), None)
    assert LogFormatter().format(record) == f"WARNING: {SHOWN}"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_console_of_another_encoding_does_not_fail(encoding):
    raw = io.BytesIO()
    output = io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace")
    console = Console(file=output, width=60)
    table = Table("±")
    table.add_row("ü €")
    console.print(table)
    output.flush()
    assert b"\\u20ac" in raw.getvalue()


def test_every_module_prints_through_this_console():
    """rich's own console would interpret markup and escapes in names and texts."""
    package = Path(fairseq_sharing.__file__).parent
    for file in package.rglob("*.py"):
        name = str(file.relative_to(package))
        text = file.read_text(encoding="utf-8")
        if name != "terminal.py" and re.search(r"\bConsole\(", text):
            assert "from fairseq_sharing.terminal import Console" in text, name
