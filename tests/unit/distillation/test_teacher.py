"""Which models can be teachers of sequence-level distillation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from fairseq.data import Dictionary
from rich.console import Console
from sharing_cases import BY_NAME
from tiny_models import make_trainer, save

from fairseq_sharing.decoding.ctranslate2_export import export
from fairseq_sharing.decoding.model_files import find_model
from fairseq_sharing.distillation.teacher import find_teacher
from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import sha256

CONSOLE = Console(stderr=True)


@pytest.fixture(scope="module")
def prepared(data_dir, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    shutil.copytree(data_dir, folder / "bin")
    manifest = {"source_lang": "en", "target_lang": "de", "tokenizer": {"name": "none"}, "subword": {"name": "none"}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def checkpoint(prepared, tmp_path_factory) -> str:
    """A checkpoint whose record names the prepared data."""
    trainer = make_trainer(prepared / "bin", BY_NAME["sequence"])
    return str(save(trainer, tmp_path_factory.mktemp("teacher") / "one.pt"))


def test_the_engine_depends_on_the_number_of_models(checkpoint, prepared):
    one = find_teacher([checkpoint], None, None, "cpu", CONSOLE)
    assert (one.engine, one.data) == ("ctranslate2", prepared)
    assert one.identity()["checkpoints"] == [sha256(Path(checkpoint))]
    two = find_teacher([checkpoint, checkpoint], None, None, "cpu", CONSOLE)
    assert (two.engine, len(two.files.checkpoints)) == ("fairseq", 2)
    assert "ctranslate2" in one.identity()["versions"].keys() - two.identity()["versions"].keys()
    with pytest.raises(SharingError, match=r"^--engine ctranslate2: 2 checkpoints; allowed: one, or --engine fairseq$"):
        find_teacher([checkpoint, checkpoint], None, "ctranslate2", "cpu", CONSOLE)


def test_teachers_with_other_dictionaries_form_no_ensemble(checkpoint, prepared, tmp_path):
    folder = shutil.copytree(prepared, tmp_path / "other")
    for language in ("en", "de"):
        other = Dictionary()
        for number in reversed(range(46)):
            other.add_symbol(f"w{number}")
        other.save(str(folder / "bin" / f"dict.{language}.txt"))
    stranger = save(make_trainer(folder / "bin", BY_NAME["sequence"]), tmp_path / "stranger.pt")
    with pytest.raises(SharingError, match=r"stranger.pt: its languages or dictionaries are not those of .*one.pt; "):
        find_teacher([checkpoint, str(stranger)], None, None, "cpu", CONSOLE)


def test_an_exported_model_and_data_without_a_manifest_are_refused(checkpoint, data_dir, tmp_path):
    folder = export(find_model(checkpoint, None, CONSOLE), tmp_path / "exported").path
    with pytest.raises(
        SharingError, match=r"exported: is a CTranslate2 model; allowed: a run directory or a checkpoint$"
    ):
        find_teacher([str(folder)], None, None, "cpu", CONSOLE)
    with pytest.raises(SharingError, match=r"its data has no manifest.json; give a directory made by fairseq-sharing"):
        find_teacher([checkpoint], data_dir, None, "cpu", CONSOLE)


def test_a_teacher_is_exported_once(checkpoint, tmp_path):
    teacher = find_teacher([checkpoint], None, None, "cpu", CONSOLE)
    first = teacher.exported(tmp_path / "model", CONSOLE)
    before = (tmp_path / "model" / "model.bin").stat().st_mtime_ns
    assert teacher.exported(tmp_path / "model", CONSOLE) == first
    assert (tmp_path / "model" / "model.bin").stat().st_mtime_ns == before
    assert first.load().max_source == first.load().max_target == 63
    (tmp_path / "model" / "model.bin").write_bytes(b"damaged")
    with pytest.raises(SharingError, match="missing or changed since the export"):
        teacher.exported(tmp_path / "model", CONSOLE)


def test_fairseq_needs_no_export(checkpoint, tmp_path):
    teacher = find_teacher([checkpoint], None, "fairseq", "cpu", CONSOLE)
    assert teacher.exported(tmp_path / "model", CONSOLE) is teacher
    assert not (tmp_path / "model").exists()
    assert teacher.load() is teacher.load()
