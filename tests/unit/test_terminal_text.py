"""Text of users is printed as it is."""

from __future__ import annotations

import re

import pytest
from rich.text import Text

from fairseq_sharing.commands import main
from fairseq_sharing.preparation import progress
from fairseq_sharing.resources import PACKAGE_DIR
from fairseq_sharing.terminal import Console

NAME = "runs[1]/[bold]:smile:[/]"


@pytest.mark.parametrize("stderr", [False, True])
def test_brackets_and_colons_of_a_path_are_kept(capsys, stderr):
    Console(stderr=stderr, soft_wrap=True).print(f"{NAME}: done")
    assert capsys.readouterr()[int(stderr)] == f"{NAME}: done\n"


def test_progress_shows_the_name_of_a_file(capsys):
    with progress.progress("read a[1].txt", 1) as advance:
        advance(1)
    assert "read a[1].txt" in capsys.readouterr().err


def test_a_command_prints_the_path_as_given(tmp_path, capsys):
    folder = tmp_path / "data[1]"
    assert main(["prepare", "toy", "--out", str(folder), "--workers", "1", "--subword", "none"]) == 0
    assert f"{folder}: train " in capsys.readouterr().err


def test_no_command_interprets_text_of_users():
    """Outside of the reports, which escape it: every console is terminal's, every column of a bar is plain text."""
    for file in sorted(PACKAGE_DIR.rglob("*.py")):
        text = file.read_text()
        if "reporting" in file.parts or file.name == "terminal.py":
            continue
        if re.search(r"(?<![a-z_])Console\(", text):
            assert not re.search(r"^from rich\.console import .*Console", text, re.MULTILINE), file
        for column in re.findall(r"TextColumn\(\"[^\"]*(?:description|fields)[^\"]*\".*", text):
            assert "markup=False" in column, f"{file}: {column}"
    assert Text.from_markup(NAME).plain != NAME
