"""The command line as a whole: versions and the order of arguments."""

from __future__ import annotations

import importlib
import itertools

import pytest

from fairseq_sharing.commands import COMMANDS, main


def test_version_names_the_packages(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        *("fairseq-sharing", "fairseq-fixed", "torch", "sacrebleu")
    ]


# One value of each positional argument, and options before, between and after them.
WORDS = {
    "describe": (["toy", "row=vanilla"], ["--length", "9"], ["--json"]),
    "prepare": (["toy"], ["--out", "data"], []),
    "train": (["toy", "row=vanilla", "seed=2"], ["--out", "run"], ["--dry-run"]),
    "average": (["a.pt", "b.pt"], ["--output", "c.pt"], []),
    "evaluate": (["toy", "row=vanilla"], ["--beam", "4"], ["--json"]),
    "export": (["run"], ["--output", "out"], ["--materialize"]),
    "untie": (["a.pt"], ["--output", "b.pt"], []),
    "translate": (["run", "en.txt"], ["--beam", "4"], ["--prepared"]),
    "autodepth": (["run"], ["--penalty", "0.1"], ["--subset", "train"]),
    "report": (["results"], ["--metric", "chrf"], ["--json"]),
    "study": (["run", "toy", "train.max_epoch=1"], ["--jobs", "2"], ["--dry-run"]),
    "clean": (["runs"], [], ["--dry-run"]),
    "flags": (["transformer_sharing"], [], []),
}


@pytest.mark.parametrize("command", WORDS)
def test_options_and_arguments_come_in_any_order(command, monkeypatch):
    parsed = []
    monkeypatch.setattr(importlib.import_module(f"fairseq_sharing.commands.{command}"), "run", parsed.append)
    positional, *options = WORDS[command]
    for first, second in itertools.product(range(len(positional) + 1), repeat=2):
        words = [[word] for word in positional]
        words.insert(first, options[0])
        words.insert(second, options[1])
        assert main([command, *itertools.chain(*words)]) == 0
    in_order = [vars(args) for args in parsed]
    assert all(args == in_order[-1] for args in in_order)
    assert in_order[0]["command"] == command in COMMANDS


def test_unknown_arguments_are_refused(capsys):
    for words in (["translate", "run", "en.txt", "more.txt"], ["untie", "a.pt", "--output", "b.pt", "x=1"]):
        with pytest.raises(SystemExit, match="2"):
            main(words)
        assert capsys.readouterr().err.endswith(f"error: unrecognized arguments: {words[-1]}\n")
