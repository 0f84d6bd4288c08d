"""A small file cannot make a reader of checkpoints fill the memory."""

from __future__ import annotations

import zipfile

import pytest
import torch

from fairseq_sharing.checkpoints.files import load_checkpoint
from fairseq_sharing.errors import SharingError


def test_compressed_records_are_refused(tmp_path):
    torch.save({"model": {"a": torch.zeros(1 << 20)}}, tmp_path / "plain.pt")
    load_checkpoint(tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for record in plain.infolist():
            bomb.writestr(record.filename, plain.read(record))
    assert (tmp_path / "bomb.pt").stat().st_size < 1 << 16
    with pytest.raises(SharingError, match=r"bomb\.pt: not read, because the record .* is compressed; allowed: "):
        load_checkpoint(tmp_path / "bomb.pt")


def test_overlapping_records_are_refused(tmp_path, monkeypatch):
    torch.save({"model": {"a": torch.zeros(1000)}}, tmp_path / "a.pt")
    stock = zipfile.ZipFile.infolist
    monkeypatch.setattr(zipfile.ZipFile, "infolist", lambda self: stock(self) * 2)
    with pytest.raises(SharingError, match=r"a\.pt: not read, because its records overlap; allowed: "):
        load_checkpoint(tmp_path / "a.pt")


def test_a_tensor_of_more_elements_than_the_file_has_is_refused(tmp_path):
    torch.save({"model": {"a": torch.zeros(1).expand(1 << 40)}}, tmp_path / "a.pt")
    assert (tmp_path / "a.pt").stat().st_size < 10_000
    with pytest.raises(SharingError, match=rf"tensor a has the shape \[{1 << 40}\], but fewer values; allowed: "):
        load_checkpoint(tmp_path / "a.pt")


def test_tied_tensors_and_views_are_allowed(tmp_path):
    weight = torch.arange(12.0).reshape(3, 4)
    torch.save({"model": {"a": weight, "b": weight, "c": weight[1], "d": torch.zeros(0)}}, tmp_path / "a.pt")
    assert load_checkpoint(tmp_path / "a.pt")["model"]["c"].tolist() == [4, 5, 6, 7]
