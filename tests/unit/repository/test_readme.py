"""Every command, configuration, link and snippet of the README works."""

from __future__ import annotations

import argparse
import importlib
import re
import runpy
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from fairseq_sharing.commands import COMMANDS
from fairseq_sharing.experiment.config import compose
from fairseq_sharing.layer_map import SHARING_CHOICES, make_layer_map

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    ROOT / "README.md",
    ROOT / "docs" / "results.md",
    *sorted(ROOT.glob("data-prep/*/README.md")),
    *sorted(ROOT.glob("results/*/README.md")),
]


def _blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def _commands(program: str, text: str = README) -> list[str]:
    joined = "\n".join(_blocks("bash", text)).replace("\\\n", " ")
    in_tables = re.findall(r"^\|.*`(fairseq-sharing [^`]*)` \|$", text, re.MULTILINE)
    lines = [line.partition("#")[0].strip() for line in joined.splitlines()]
    return [line for line in [*lines, *in_tables] if line.startswith(program)]


def _commands_of_pages() -> list[str]:
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    return sorted({command for text in texts for command in _commands("fairseq-sharing ", text)})


def _table_of_strategies(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """Return each row's strategy and layer map; the first set is 0."""
    rows = re.findall(r"^\| `(\w+)` \|(?: [^|]* \|)? (\d(?: \d){5}) \|", text, re.MULTILINE)
    maps = [(strategy, [int(label) for label in labels.split()]) for strategy, labels in rows]
    return [(strategy, tuple(label - labels[0] for label in labels)) for strategy, labels in maps]


def _documents_with_strategies() -> list[Path]:
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [file for file in documents if _table_of_strategies(file.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("command", _commands_of_pages())
def test_fairseq_sharing_command_parses_and_its_files_exist(command):
    _, name, *words = shlex.split(command)
    assert name in COMMANDS
    module = importlib.import_module(f"fairseq_sharing.commands.{name}")
    parser = argparse.ArgumentParser(exit_on_error=False)
    module.add_arguments(parser)
    args, overrides = parser.parse_known_args(words)
    assert all("=" in word and not word.startswith("-") for word in overrides), f"unknown arguments: {overrides}"
    overrides = [*getattr(args, "overrides", []), *overrides]
    if name in ("train", "describe"):
        compose(args.config, overrides)
    if name == "evaluate" and overrides:
        compose(str(args.evaluated), overrides)


def test_commands_are_found_in_blocks_and_tables():
    found = _commands("fairseq-sharing ")
    assert "fairseq-sharing train multi30k row=sequence" in found
    assert "fairseq-sharing prepare multi30k --out data/multi30k" in found


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
def test_script_exists_and_prints_its_usage(command):
    script = shlex.split(command)[1]
    told = subprocess.run(["bash", ROOT / script, "--help"], capture_output=True, text=True, check=True, cwd="/")
    assert told.stdout.startswith(f"usage: bash {script}")


def test_yaml_equals_the_row_of_the_study(tmp_path):
    (text,) = _blocks("yaml")
    file = tmp_path / "cycle_rev.yaml"
    file.write_text(text.replace("base: configs", f"base: {ROOT / 'configs'}"))
    mine, theirs = compose(file), compose("multi30k", ["row=cycle_rev"])
    assert mine.train == theirs.train
    assert (mine.dataset, theirs.dataset) == ("mine", "multi30k")


def test_python_prints_what_it_says(capsys):
    code = _blocks("python", (ROOT / "docs" / "sharing.md").read_text(encoding="utf-8"))[0]
    exec(code, {})
    assert capsys.readouterr().out.strip() == re.search(r"# (\(.*\))", code)[1]


def test_quick_start_output_is_that_of_the_committed_results(tmp_path, capsys, monkeypatch):
    from fairseq_sharing.commands import main

    monkeypatch.setenv("COLUMNS", "80")
    folder = shutil.copytree(ROOT / "results" / "toy", tmp_path / "toy")
    assert main(["report", str(folder)]) == 0
    told = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    (shown,) = _blocks("text")
    assert told[: len(shown.splitlines())] == shown.splitlines()


@pytest.mark.parametrize("file", _documents_with_strategies(), ids=lambda file: file.name)
def test_strategy_table_is_that_of_the_code(file):
    rows = _table_of_strategies(file.read_text(encoding="utf-8"))
    assert sorted(strategy for strategy, _ in rows) == sorted(set(SHARING_CHOICES) - {"custom"})
    for strategy, labels in rows:
        unique = 3 if strategy in ("sequence", "cycle", "cycle_rev") else None
        assert make_layer_map(strategy, 6, unique) == labels


def test_readme_has_the_strategy_table():
    assert ROOT / "README.md" in _documents_with_strategies()


def test_picture_is_that_of_the_code():
    script = runpy.run_path(str(ROOT / "scripts" / "draw_layer_maps.py"))
    assert script["FILE"].read_text(encoding="utf-8") == script["draw"](), "run: python scripts/draw_layer_maps.py"
    assert 'src="docs/layer_maps.svg"' in README
    assert set(script["STRATEGIES"]) == set(SHARING_CHOICES) - {"custom"}


def test_results_table_is_that_of_the_committed_results():
    rows = re.findall(r"^\| ([\w() ]+?) +\| +(\d+) \| +(\d+) \| +([\d,]+) \| ([\d. |]+) \|$", README, re.MULTILINE)
    table = (ROOT / "results" / "multi30k" / "table.md").read_text(encoding="utf-8").partition("## ")[0]
    assert len(rows) == 6
    for name, unique_layers, layers, parameters, scores in rows:
        start = rf"^\| {re.escape(name)} +\| +{unique_layers} \| +{layers} \| +{parameters} \|"
        (line,) = [line for line in table.splitlines() if re.match(start, line)]
        assert re.findall(r"\d\d\.\d\d(?= )", line) == scores.split(" | ")


def test_readme_is_short():
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#\s]+)[^)\s]*\)", text) + re.findall(r'src="([^"]+)"', text)
    local = [target for target in targets if "://" not in target]
    missing = [target for target in local if not (page.parent / target).exists()]
    assert not missing
    roots = r"`((?:docs|scripts|configs|tests|results|fairseq_sharing|benchmarks|data-prep)/[\w./-]*)`"
    assert [path for path in re.findall(roots, text) if not (ROOT / path).exists()] == []
