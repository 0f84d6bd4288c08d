"""Every reader of a file ends with content or with one line that names the file, whatever the file contains."""

from __future__ import annotations

import json
import string
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from evaluation_results import result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairseq_sharing.checkpoints.files import load_checkpoint, save_atomically
from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.generation import parse_generated, read_generated
from fairseq_sharing.evaluation.steps import Steps
from fairseq_sharing.evaluation.training_log import summarize
from fairseq_sharing.experiment.config import compose
from fairseq_sharing.experiment.layers import dotlist
from fairseq_sharing.experiment.run_directory import RunDirectory, parse_log_line
from fairseq_sharing.files import read_lines
from fairseq_sharing.preparation.manifest import read_manifest
from fairseq_sharing.preparation.recipe import load_recipe
from fairseq_sharing.preparation.stream import _read_journal
from fairseq_sharing.preparation.subwords import copy_bpe
from fairseq_sharing.preparation.text import Pipeline
from fairseq_sharing.reporting.results import read_result
from fairseq_sharing.schedules.replay import recorded_state

BOUNDED = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
# Names that the readers know, so that values get past the check of names.
NAMES = """
    run dataset seed train evaluate arch source_lang target_lang subword tokenizer name model tests
    files steps sha256 splits valid cleaning scores layers sharing unique effective encoder
    train_seconds exit_status device key lines read written counts rows data recipe base url file path
    member sacrebleu outputs settings inputs
"""
KEYS = st.sampled_from(NAMES.split())
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)
RECIPE = {
    "source_lang": "en",
    "target_lang": "de",
    "splits": {name: {"lines": 3, "en": {"path": "a"}, "de": {"path": "b"}} for name in ("train", "valid")},
    "tokenizer": {"name": "moses"},
    "subword": {"name": "bpe", "size": 10},
    "cleaning": {"max_ratio": 1.5},
}
MANIFEST = {
    "dataset": "a",
    "source_lang": "en",
    "target_lang": "de",
    "tokenizer": {"name": "moses"},
    "subword": {"name": "bpe", "model": "codes.bpe"},
    "tests": [{"name": "t", "subset": "test", "segments": 1, "source": "raw/t.en", "reference": "raw/t.de"}],
    "files": {"a": "0"},
    "steps": {"a": {"settings": {}, "inputs": {}, "outputs": {}, "result": {}}},
}
RECORD = {"run": "a", "data": "d", "command": ["x"], "train_seconds": 1.0, "exit_status": 0, "device": {"kind": "cpu"}}
CONFIG = {"run": "a", "dataset": "toy", "seed": 1, "train": {"arch": "transformer"}, "evaluate": {"beam": 1}}
JOURNAL = {"key": "k", "lines": 1, "read": [1], "written": [1], "crc32": [1], "counts": {"a": 1}, "sha256": "0"}
EXPERIMENT = {"dataset": "toy", "train": {"dropout": 0.1}, "evaluate": {"beam": 2}, "seed": 1}


def _journal(file: Path) -> None:
    (file.parent / "part").write_bytes(b"xyz")
    _read_journal(file, [file.parent / "part"], "k", 1)


# Reader -> file name, a valid content, the function.
READERS: dict[str, tuple[str, Any, Callable[[Path], object]]] = {
    "manifest": ("manifest.json", MANIFEST, lambda file: read_manifest(file.parent, ("source_lang",))),
    "pipeline": ("manifest.json", MANIFEST, lambda file: Pipeline.from_manifest(file.parent)),
    "record": ("run.json", RECORD, lambda file: RunDirectory(file.parent).record()),
    "configuration": ("config.yaml", CONFIG, lambda file: RunDirectory(file.parent).config()),
    "direction": ("config.yaml", CONFIG, lambda file: RunDirectory(file.parent).direction()),
    "experiment": ("experiment.yaml", EXPERIMENT, compose),
    "result": ("result.json", result("cycle", "cycle", p_value=0.1), read_result),
    "steps": ("steps.json", {"a": {"inputs": "0", "output": "0"}}, Steps),
    "recipe": ("recipe.yaml", RECIPE, lambda file: load_recipe(str(file))),
    "journal": ("a.journal.tmp", JOURNAL, _journal),
}


def check(file: Path, read: Callable[[Path], object]) -> None:
    """Require content or one short line that names the file."""
    text = ""
    try:
        read(file)
    except SharingError as error:
        text = str(error)
    assert "\n" not in text
    assert len(text.encode()) < 2000


def mutated(content: Any, draw: Callable[[st.SearchStrategy[Any]], Any]) -> Any:
    """Replace, add or remove a part somewhere in a document."""
    if isinstance(content, dict) and content and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(content, key=str)))
        return {**content, key: mutated(content[key], draw)}
    if isinstance(content, list) and content and draw(st.booleans()):
        number = draw(st.integers(0, len(content) - 1))
        return [mutated(value, draw) if index == number else value for index, value in enumerate(content)]
    if isinstance(content, dict) and content and draw(st.booleans()):
        removed = draw(st.sampled_from(sorted(content, key=str)))
        return {key: value for key, value in content.items() if key != removed}
    return draw(VALUES)


@pytest.mark.parametrize("reader", READERS)
@BOUNDED
@given(data=st.data())
def test_documents_with_a_changed_part(tmp_path, reader, data):
    name, content, read = READERS[reader]
    document = mutated(content, data.draw)
    if name.endswith("json") or name.endswith("tmp"):
        text = json.dumps(document)
    else:
        text = yaml.safe_dump(document, allow_unicode=data.draw(st.booleans()))
    (tmp_path / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    check(tmp_path / name, read)


@pytest.mark.parametrize("reader", READERS)
@BOUNDED
@given(data=st.data())
def test_files_with_changed_bytes(tmp_path, reader, data):
    name, content, read = READERS[reader]
    text = bytearray((json.dumps(content) if "json" in name or "tmp" in name else yaml.safe_dump(content)).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(text)))
        text[place : place + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=5))
    (tmp_path / name).write_bytes(text)
    check(tmp_path / name, read)


@pytest.mark.parametrize("reader", READERS)
@BOUNDED
@given(content=st.binary(max_size=200) | st.text(alphabet=string.printable, max_size=100).map(str.encode))
def test_any_bytes(tmp_path, reader, content):
    name, _, read = READERS[reader]
    (tmp_path / name).write_bytes(content)
    check(tmp_path / name, read)


@BOUNDED
@given(words=st.lists(st.text(alphabet=string.printable, max_size=20) | KEYS.map(lambda key: f"{key}=1"), max_size=3))
def test_overrides(words):
    check(Path(), lambda _: dotlist(words))


@BOUNDED
@given(content=st.binary(max_size=300), suffix=st.sampled_from(["", ".gz", ".zip", ".tar"]))
def test_texts_and_archives(tmp_path, content, suffix):
    (tmp_path / f"a{suffix}").write_bytes(content)
    check(tmp_path / f"a{suffix}", lambda file: list(read_lines(file, "a" if suffix in (".zip", ".tar") else "")))


@BOUNDED
@given(data=st.data())
def test_damaged_zip_archives(tmp_path, data):
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", "some text\n" * 50)
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    check(file, lambda file: list(read_lines(file, "a")))


@BOUNDED
@given(lines=st.lists(st.sampled_from(["#version: 0.2", "a b", "a b</w>", "x", "", "a b c"]) | st.text(max_size=9)))
def test_codes(tmp_path, lines):
    (tmp_path / "codes").write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    check(tmp_path / "codes", lambda file: copy_bpe(file, tmp_path / "copy"))


@BOUNDED
@given(lines=st.lists(st.sampled_from(["H-0\t-0.5\ta", "H-1\tnan\tb", "H-x\t1\tc", "H-0", "S-0\ta"]) | st.text()))
def test_the_output_of_fairseq_generate(tmp_path, lines):
    check(tmp_path, lambda _: parse_generated(lines, 2, "a"))
    (tmp_path / "a").write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    check(tmp_path / "a", lambda file: read_generated(file, 2))


NUMBER_KEYS = ("wps", "num_updates", "train_wps", "train_num_updates", "valid_loss", "valid_num_updates", "valid_ppl")


@BOUNDED
@given(
    records=st.lists(
        st.dictionaries(st.sampled_from([*NUMBER_KEYS, "epoch", "valid_a_choices", "valid_a_dead"]), VALUES, max_size=4)
        | VALUES,
        max_size=4,
    )
)
def test_training_logs(tmp_path, records):
    lines = [f"t | INFO | train | {json.dumps(record)}\n" for record in records]
    (tmp_path / "train.log").write_bytes("".join(lines).encode("utf-8", "surrogatepass"))
    check(tmp_path / "train.log", lambda file: summarize(RunDirectory(file.parent).log_records()))
    for line in lines:
        parse_log_line(line)


CHECKPOINT = {
    "model": {
        "_extra_state": {"stacks": {"encoder": {"layer_map": [0, 0], "scope": ["layer"]}}},
        "encoder.layers.0.fc1.weight": torch.zeros(2, 2),
    },
    "extra_state": {"train_iterator": {"epoch": 1}, "val_loss": 1.0},
    "optimizer_history": [{"num_updates": 1}],
    "last_optimizer_state": {},
}


@BOUNDED
@given(data=st.data())
def test_checkpoints_with_a_changed_part(tmp_path, data):
    content = {**CHECKPOINT, "model": mutated(CHECKPOINT["model"], data.draw)}
    if data.draw(st.booleans()):
        content["sharing_schedule"] = data.draw(VALUES)
    save_atomically(content, tmp_path / "a.pt")
    check(tmp_path / "a.pt", lambda file: recorded_state(load_checkpoint(file)))


@BOUNDED
@given(data=st.data())
def test_checkpoints_with_changed_bytes(tmp_path, data):
    save_atomically(CHECKPOINT, tmp_path / "a.pt")
    content = bytearray((tmp_path / "a.pt").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    del content[len(content) - data.draw(st.sampled_from([0, 0, 1, 100])) :]
    (tmp_path / "a.pt").write_bytes(content)
    check(tmp_path / "a.pt", load_checkpoint)


def test_the_valid_documents_are_read(tmp_path):
    """Otherwise the tests above would test one check only."""
    seen = SimpleNamespace(read=0)
    for name, content, read in READERS.values():
        (tmp_path / name).write_text(json.dumps(content))
        read(tmp_path / name)
        seen.read += 1
        (tmp_path / name).unlink()
    assert seen.read == len(READERS)
