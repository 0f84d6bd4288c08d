"""Every command, configuration and snippet of the README is one that works."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from fairseq_sharing.commands import COMMANDS
from fairseq_sharing.experiment.config import compose
from fairseq_sharing.layer_map import make_layer_map

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def _commands(program: str) -> list[str]:
    joined = "\n".join(_blocks("bash")).replace("\\\n", " ")
    return [line.partition("#")[0].strip() for line in joined.splitlines() if line.startswith(program)]


@pytest.mark.parametrize("command", _commands("fairseq-sharing "))
def test_fairseq_sharing_command_parses_and_its_files_are_there(command):
    _, name, *words = shlex.split(command)
    assert name in COMMANDS
    module = importlib.import_module(f"fairseq_sharing.commands.{name}")
    parser = argparse.ArgumentParser(exit_on_error=False)
    module.add_arguments(parser)
    args = parser.parse_args(words)
    if name in ("train", "describe"):
        compose(ROOT / args.config, args.overrides)


@pytest.mark.parametrize("command", [c for c in _commands("fairseq-sharing ") if "--dry-run" in c])
def test_dry_run_prints_the_fairseq_command(command, capsys, monkeypatch):
    from fairseq_sharing.commands import main

    monkeypatch.chdir(ROOT)
    assert main(shlex.split(command)[1:]) == 0
    words = shlex.split(capsys.readouterr().out)
    assert words[0] == "fairseq-train"
    assert words[words.index("--sharing") + 1] == "cycle_rev"


@pytest.mark.parametrize("command", _commands("fairseq-train "))
def test_fairseq_train_command_parses_with_the_plugin(command):
    from fairseq import options

    import fairseq_sharing

    fairseq_sharing.register()
    _, *words = shlex.split(command.replace("--user-dir fairseq_sharing", f"--user-dir {ROOT / 'fairseq_sharing'}"))
    args = options.parse_args_and_arch(options.get_training_parser(), words)
    assert (args.sharing, args.unique_layers) == ("cycle_rev", 3)


@pytest.mark.parametrize("command", _commands("bash "))
def test_script_is_there_and_tells_its_usage(command):
    script = shlex.split(command)[1]
    told = subprocess.run(["bash", ROOT / script, "--help"], capture_output=True, text=True, check=True, cwd="/")
    assert told.stdout.startswith(f"usage: bash {script}")


def test_yaml_is_the_experiment_it_stands_for(tmp_path):
    (text,) = _blocks("yaml")
    experiment = ROOT / "configs" / "multi30k" / "cycle_rev.yaml"
    file = tmp_path / "cycle_rev.yaml"
    file.write_text(text.replace("../base", str(experiment.parent.parent / "base")))
    assert compose(file).train == compose(experiment).train


def test_python_prints_what_it_says(capsys):
    (code,) = _blocks("python")
    exec(code, {})
    assert capsys.readouterr().out.strip() == re.search(r"# (\(.*\))", code)[1]


def test_strategy_table_is_that_of_the_code():
    rows = re.findall(r"^\| `(\w+)` \| ([\d ]+) \|", README, re.MULTILINE)
    assert len(rows) == 6
    for strategy, numbers in rows:
        expected = tuple(int(number) - 1 for number in numbers.split())
        unique = 3 if strategy in ("sequence", "cycle", "cycle_rev") else None
        assert make_layer_map(strategy, 6, unique) == expected


def test_links_lead_to_files():
    for path in re.findall(r"`((?:docs|scripts|configs|tests|results|fairseq_sharing)/[\w./-]*)`", README):
        assert (ROOT / path).exists() or path == "results/", path
