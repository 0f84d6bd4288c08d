"""A damaged or foreign subword model is one line, not other subwords or an error of its library."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from fairseq_sharing.errors import SharingError
from fairseq_sharing.preparation.parallel import Workers
from fairseq_sharing.preparation.subwords import learn_bpe
from fairseq_sharing.preparation.text import Pipeline

CODES = b"#version: 0.2\nd o\ndo g</w>\n"


def pipeline(folder: Path, name: str, content: bytes, recorded: bytes | None = None) -> Pipeline:
    """Read a data directory whose manifest records another content of the model, if one is given."""
    (folder / "model").write_bytes(content)
    manifest = {
        "source_lang": "en",
        "target_lang": "de",
        "tokenizer": {"name": "none"},
        "subword": {"name": name, "model": "model"},
        "files": {"model": hashlib.sha256(recorded).hexdigest()} if recorded is not None else {},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Pipeline.from_manifest(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "model: contains no merges; allowed: '#version: 0.2', then two symbols per line"),
        (b"#version: 0.2\n", "model: contains no merges"),
        (b"x" * 100, "model: not merges of subword-nmt (line 1); allowed: '#version: 0.2', then two symbols per line"),
        (b"#version: 0.2\na b c\n", "model: not merges of subword-nmt (line 2)"),
        (b"#version: 0.2\na b\n\nc d\n", "model: not merges of subword-nmt (line 3)"),
        (b"#version: 0.2\na \n", "model: not merges of subword-nmt (line 2)"),
        (b"#version: 0.2\na b\r\n", "model: not merges of subword-nmt (line 2)"),
        (b"#version: 0.2\n\xff b\n", "model, line 2: not UTF-8"),
        (b"#version: 0.2\na \0\n", "model, line 2: contains a NUL byte"),
    ],
)
def test_malformed_codes_are_refused(tmp_path, content, message):
    with pytest.raises(SharingError) as error:
        pipeline(tmp_path, "bpe", content).encode("dog")
    assert message in str(error.value)


@pytest.mark.parametrize("content", [b"", b"x" * 100, CODES])
def test_a_malformed_sentencepiece_model_is_refused(tmp_path, content):
    with pytest.raises(SharingError, match=r"model: not a model of sentencepiece; re-run fairseq-sharing prepare$"):
        pipeline(tmp_path, "sentencepiece", content).encode("dog")


def test_a_flipped_byte_is_noticed(tmp_path):
    assert pipeline(tmp_path, "bpe", CODES, CODES).encode("dog dot") == "dog do@@ t"
    with pytest.raises(SharingError, match=r"model: changed since its preparation; re-run fairseq-sharing prepare$"):
        pipeline(tmp_path, "bpe", CODES.replace(b"d o", b"d p"), CODES)


def test_texts_without_any_pair_are_refused_when_learning(tmp_path):
    (tmp_path / "text").write_text("ab cd\n")
    with Workers(1) as pool, pytest.raises(SharingError, match="no two characters occur together twice; use more text"):
        learn_bpe([tmp_path / "text"], 10, tmp_path / "codes", pool)
    assert not (tmp_path / "codes").exists()
