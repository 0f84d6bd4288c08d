import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fairseq_sharing.description.counts import vocabulary_size
from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.test_data import prepared_data
from fairseq_sharing.experiment.config import compose
from fairseq_sharing.experiment.direction import KEYS
from fairseq_sharing.preparation.manifest import read_manifest
from fairseq_sharing.preparation.steps import ResumableSteps, locked
from fairseq_sharing.preparation.text import Pipeline
from fairseq_sharing.training.plan import make_plan

TEST = {"name": "small", "subset": "test", "segments": 2, "source": "raw/small.en", "reference": "raw/small.de"}
MANIFEST: dict[str, Any] = {
    "dataset": "mine",
    "artificial": False,
    "source_lang": "en",
    "target_lang": "de",
    "tokenizer": {"name": "moses"},
    "subword": {"name": "bpe", "model": "codes.bpe"},
    "tests": [TEST],
    "files": {"bin/dict.en.txt": "0" * 64},
    "steps": {"raw": {"settings": {}, "inputs": {}, "outputs": {"raw/small.en": "0"}, "result": {}}},
    "max_tokens": {"source": 1023, "target": 1023},
}

READERS: dict[str, Callable[[Path], object]] = {
    "read": read_manifest,
    "train": lambda data: make_plan(compose("toy", ["row=vanilla"]), data=data, devices=1),
    "evaluate": prepared_data,
    "text": Pipeline.from_manifest,
    "translate": lambda data: read_manifest(data, KEYS),
    "describe": vocabulary_size,
}
readers = pytest.mark.parametrize("reader", READERS.values(), ids=READERS)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "dict.en.txt").write_text("a 1\n")
    return tmp_path


@readers
def test_complete_data_are_read_whether_or_not_they_were_ever_locked(data: Path, reader: Callable[[Path], object]):
    reader(data)
    with locked(data):
        pass
    reader(data)
    assert read_manifest(data) == MANIFEST


@readers
def test_data_are_refused_while_they_are_prepared(data: Path, reader: Callable[[Path], object]):
    with (
        locked(data),
        pytest.raises(SharingError, match="prepare is running in this folder; wait until it has finished"),
    ):
        reader(data)


@readers
def test_data_are_refused_when_their_preparation_was_stopped(data: Path, reader: Callable[[Path], object]):
    def stop() -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ResumableSteps(data).run("subwords", {"size": 9}, {}, ["codes.bpe"], stop)
    with pytest.raises(
        SharingError, match=r"its preparation has not finished; re-run the same fairseq-sharing prepare command"
    ):
        reader(data)


@readers
@pytest.mark.parametrize("content", [b"", b"[]", b"[1]", b"3", b"{", b"\xff{}", b"[" * 100_000])
def test_an_invalid_manifest_is_refused_in_one_line(data: Path, reader: Callable[[Path], object], content: bytes):
    (data / "manifest.json").write_bytes(content)
    with pytest.raises(
        SharingError, match=r"^[^\n]*manifest\.json: not (a manifest of prepare or export|JSON)[:\s][^\n]*$"
    ):
        reader(data)


VALUES = [None, True, 5, -1, 1.5, "x", "", "../x", "a b", [], [1], {}, {"name": "x"}, {"name": []}, {"../x": "0"}]
# Which of these values the key may have.
ALLOWED: dict[str, list[object]] = {
    "dataset": ["x", "", "../x", "a b"],
    "artificial": [True],
    "source_lang": ["x"],
    "target_lang": ["x", ""],
    "tests": [[]],
    "files": [{}, {"name": "x"}],
    "steps": [{}],
}


@pytest.mark.parametrize("key", MANIFEST)
def test_a_key_of_the_wrong_type_is_refused_by_name(data: Path, key: str):
    for value in VALUES:
        (data / "manifest.json").write_text(json.dumps({**MANIFEST, key: value}))
        if any(value == one and type(value) is type(one) for one in ALLOWED.get(key, [])):
            assert read_manifest(data)[key] == value
            continue
        with pytest.raises(SharingError, match=rf"^[^\n]*manifest\.json: [^\n]*({key} is|path '\.\./x')[^\n]*$"):
            read_manifest(data)


@pytest.mark.parametrize("key", TEST)
@pytest.mark.parametrize("value", [None, [], -1, 1.5, "../x", "/x", "a\0", "x/../../y"])
def test_a_test_set_of_the_wrong_type_is_refused(data: Path, key: str, value: object):
    (data / "manifest.json").write_text(json.dumps({**MANIFEST, "tests": [{**TEST, key: value}]}))
    with pytest.raises(SharingError, match=r"tests is|not inside"):
        read_manifest(data)


@pytest.mark.parametrize("model", ["../codes.bpe", "/codes.bpe", "", 5])
def test_a_subword_model_outside_of_the_folder_is_refused(data: Path, model: object):
    (data / "manifest.json").write_text(json.dumps({**MANIFEST, "subword": {"name": "bpe", "model": model}}))
    with pytest.raises(SharingError, match=r"subword is|not inside"):
        Pipeline.from_manifest(data)


@pytest.mark.parametrize(
    ("key", "reader"),
    [("tests", "evaluate"), ("files", "evaluate"), ("source_lang", "translate"), ("subword", "text")],
)
def test_a_missing_key_is_named(data: Path, key: str, reader: str):
    content = {name: value for name, value in MANIFEST.items() if name != key}
    (data / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(SharingError, match=re.escape(f"manifest.json: missing {key}; allowed: ")):
        READERS[reader](data)


def test_a_folder_of_fairseq_preprocess_has_no_manifest(tmp_path: Path):
    assert read_manifest(tmp_path) == {}
    assert make_plan(compose("toy", ["row=vanilla"]), data=tmp_path, devices=1).manifest() == {}
