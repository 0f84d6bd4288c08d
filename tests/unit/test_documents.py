"""JSON and YAML files: every damaged, foreign or hostile file ends as one line that names it, quickly."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from fairseq_sharing.documents import MAX_YAML_BYTES, is_count, is_name, read_json, read_yaml
from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.steps import Steps
from fairseq_sharing.experiment.layers import dotlist
from fairseq_sharing.experiment.layers import read_yaml as read_config
from fairseq_sharing.experiment.run_directory import RunDirectory
from fairseq_sharing.preparation.manifest import load_manifest
from fairseq_sharing.preparation.recipe import load_recipe
from fairseq_sharing.reporting.results import read_result

SCHEMA = {"run": (is_name, "a name"), "seed": (is_count, "a whole number from 0")}
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
BAD_YAML = {
    "aliases": LAUGHS,
    "an alias of itself": "a: &a [*a]",
    "depth": "[" * 5000,
    "nesting": "".join(f"{' ' * n}a:\n" for n in range(150)) + " " * 150 + "b",
    "a duplicate key": "run: a\nrun: b",
    "an object": "!!python/object/apply:os.system [echo]",
    "a set": "a: !!set {b}",
    "bytes": "a: !!binary eA==",
    "a surrogate": 'a: "\\ud800"',
    "a huge number": "a: " + "9" * 5000,
    "a large number": "a: " + "9" * 30,
    "NaN": "a: .nan",
    "not UTF-8": b"a: \xff",
    "NUL": b"a: \0",
    "UTF-16": "a: b".encode("utf-16"),
    "size": "#" * (MAX_YAML_BYTES + 1),
}
BAD_JSON = {
    "nothing": "",
    "a list": "[]",
    "a list with a value": "[1]",
    "text": '"x"',
    "null": "null",
    "a rest": "{} {}",
    "depth": "[" * 100_000,
    "nesting": '{"a": ' + "[" * 150 + "]" * 150 + "}",
    "a surrogate": '{"a": "\\ud800"}',
    "a surrogate as a key": '{"\\udfff": 1}',
    "a huge number": '{"a": ' + "9" * 5000 + "}",
    "a large number": '{"a": 99999999999999999999}',
    "NaN": '{"a": [NaN]}',
    "infinity": '{"a": {"b": -Infinity}}',
    "overflow": '{"a": 1e999}',
    "not UTF-8": b'{"a": "\xff"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
}


def write(file: Path, content: str | bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def refused(file: Path, read, *arguments) -> str:
    """Return the only line of the error, which names the file, in a short time."""
    began = time.monotonic()
    with pytest.raises(SharingError) as error:
        read(*arguments)
    assert time.monotonic() - began < 5  # of a busy machine
    text = str(error.value)
    assert text.startswith(str(file))
    assert "\n" not in text
    assert len(text) < 600
    return text


@pytest.mark.parametrize("name", BAD_YAML)
def test_yaml_is_refused_in_one_line(tmp_path, name):
    file = write(tmp_path / "x.yaml", BAD_YAML[name])
    refused(file, read_yaml, file)


def test_aliases_are_counted_and_allowed_within_a_limit(tmp_path):
    file = write(tmp_path / "x.yaml", LAUGHS)
    assert "aliases expand to more than 100,000 values" in refused(file, read_yaml, file)
    file = write(tmp_path / "y.yaml", "a: &a {lr: 1e-4}\nb: {<<: *a, c: 2}\nd: 2020-01-01")
    assert read_yaml(file) == {"a": {"lr": 1e-4}, "b": {"lr": 1e-4, "c": 2}, "d": "2020-01-01"}


@pytest.mark.parametrize("name", BAD_JSON)
def test_json_is_refused_in_one_line(tmp_path, name):
    file = write(tmp_path / "x.json", BAD_JSON[name])
    refused(file, read_json, file, SCHEMA, "a record of train")


def test_the_schema_names_the_field_its_value_and_what_is_allowed(tmp_path):
    file = write(tmp_path / "x.json", '{"run": "../x"}')
    assert refused(file, read_json, file, SCHEMA, "a record") == (
        f"{file}: not a record: run is '../x'; allowed: a name"
    )
    file = write(tmp_path / "x.json", '{"run": "a"}')
    assert refused(file, read_json, file, SCHEMA, "a record", ("run", "seed")) == f"{file}: not a record; missing: seed"
    assert (
        refused(tmp_path / "no", read_json, tmp_path / "no", SCHEMA, "a record") == f"{tmp_path / 'no'}: no such file"
    )
    assert read_json(file, SCHEMA, "a record") == {"run": "a"}


# Each reader of the package, with its file below a folder.
READERS = {
    "run.json": lambda folder: RunDirectory(folder).record(),
    "config.yaml": lambda folder: RunDirectory(folder).config(),
    "manifest.json": lambda folder: load_manifest(folder / "manifest.json"),
    "result.json": lambda folder: read_result(folder / "result.json"),
    "steps.json": lambda folder: Steps(folder / "steps.json"),
    "recipe.yaml": lambda folder: load_recipe(str(folder / "recipe.yaml")),
    "experiment.yaml": lambda folder: read_config(folder / "experiment.yaml"),
}


@pytest.mark.parametrize("name", READERS)
def test_every_reader_refuses_every_bad_file(tmp_path, name):
    foreign = {"nothing": "", "a list": "[]", "a list with a value": "[1]", "text": '"x"', "null": "null"}
    for content in (BAD_JSON if name.endswith("json") else {**BAD_YAML, **foreign}).values():
        refused(write(tmp_path / name, content), READERS[name], tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, value) for name in ("run", "dataset") for value in ("../x", "a/b", "", True, 1.5, [], {"a": 1}, None)),
        *(("seed", value) for value in ("1/../x", -1, True, 1.5, [1], None)),
        *((name, value) for name in ("train", "evaluate") for value in ([], "x", 1)),
        ("train", {"arch": "${oc.env:HOME}"}),
        ("train", {"arch": ["${"]}),
    ],
)
def test_a_received_configuration_is_checked(tmp_path, field, value):
    content = {"run": "a", "dataset": "toy", "seed": 1, "train": {}, "evaluate": {}}
    write(tmp_path / "config.yaml", json.dumps(content))
    assert RunDirectory(tmp_path).config() == content
    write(tmp_path / "config.yaml", json.dumps({**content, field: value}))
    assert field in refused(tmp_path / "config.yaml", RunDirectory(tmp_path).config)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run", "a/b"),
        ("data", 3),
        ("dictionaries", ["x"]),
        ("command", "rm"),
        ("command", [1]),
        ("train_seconds", "1"),
        ("train_seconds", -1),
        ("peak_memory_bytes", 0.5),
        ("exit_status", "0"),
        ("device", []),
        ("versions", {"torch": {}}),
        ("finished", 3),
    ],
)
def test_a_received_record_is_checked(tmp_path, field, value):
    write(tmp_path / "run.json", json.dumps({"run": "a", "exit_status": -9, field: value}))
    assert f"not a record of train: {field} is " in refused(tmp_path / "run.json", RunDirectory(tmp_path).record)


def test_overrides_have_the_same_limits():
    with pytest.raises(SharingError, match="aliases expand to more than"):
        dotlist([f"train={{{LAUGHS.replace(chr(10), ', ')}}}"])
