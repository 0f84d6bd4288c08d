"""fairseq's commands refuse data whose preparation is running or was killed, and print system errors in one line."""

from __future__ import annotations

import errno
import sys
from types import SimpleNamespace

import pytest
from fairseq.data import Dictionary, data_utils, indexed_dataset

import fairseq_sharing.models.transformer_sharing  # noqa: F401  applies the fixes
from fairseq_sharing.errors import SharingError
from fairseq_sharing.fixes.error_messages import print_errors_on_one_line
from fairseq_sharing.preparation.manifest import UNFINISHED
from fairseq_sharing.preparation.steps import locked


@pytest.fixture
def data(tmp_path):
    """Binarize one sentence in the folder ``bin``, as prepare does."""
    (tmp_path / "bin").mkdir()
    prefix = str(tmp_path / "bin" / "train.en-de.en")
    builder = indexed_dataset.make_builder(f"{prefix}.bin", "mmap", 100)
    builder.add_item(Dictionary().encode_line("a", append_eos=True, add_if_not_exist=True))
    builder.finalize(f"{prefix}.idx")
    return SimpleNamespace(folder=tmp_path, prefix=prefix, load=lambda: data_utils.load_indexed_dataset(prefix))


def test_finished_data_and_those_of_fairseq_preprocess_are_read(data):
    assert len(data.load()) == 1
    (data.folder / "manifest.json").write_text("of another program")
    assert len(data.load()) == 1


def test_unfinished_data_are_refused(data):
    (data.folder / UNFINISHED).write_text("{}")
    with pytest.raises(SharingError, match=f"^{data.folder}: its preparation has not finished; re-run the same"):
        data.load()


def test_data_that_are_being_prepared_are_refused(data):
    with locked(data.folder), pytest.raises(SharingError, match=f"^{data.folder}: fairseq-sharing prepare is running"):
        data.load()
    assert len(data.load()) == 1


def test_a_system_error_of_fairseq_is_one_line(monkeypatch, capsys):
    stock = []
    monkeypatch.setattr(sys, "argv", ["fairseq-train"])
    monkeypatch.setattr(sys, "excepthook", lambda *error: stock.append(error))
    print_errors_on_one_line()
    sys.excepthook(PermissionError, PermissionError(errno.EACCES, "Permission denied", "/a\x1b[2J"), None)
    assert capsys.readouterr().err == "fairseq-train: error: /a\\x1b[2J: Permission denied\n"
    sys.excepthook(SharingError, SharingError("a\x1bb\nc"), None)
    assert capsys.readouterr().err == "fairseq-train: error: a\\x1bb c\n"
    assert not stock
    sys.excepthook(OSError, OSError("no file"), None)
    assert len(stock) == 1
