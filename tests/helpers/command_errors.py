"""Run a command of the package in this process and read its error."""

from __future__ import annotations

from fairseq_sharing.commands import main


def failed(capfd, words: list[object], status: int = 2) -> str:
    """Run a command that must fail; return its only line on stderr without the name of the command."""
    capfd.readouterr()
    try:
        ended = main([str(word) for word in words])
    except SystemExit as exited:
        ended = exited.code
    output = capfd.readouterr()
    assert ended == status, output
    assert output.err.count("\n") == 1, output.err
    assert not output.out
    head, _, text = output.err.rstrip("\n").partition(": error: ")
    assert head == f"fairseq-sharing {words[0]}"
    return text
