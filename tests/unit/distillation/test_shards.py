"""Shards and their index."""

from __future__ import annotations

from pathlib import Path

from fairseq_sharing.distillation.shards import INDEX, Shards


def _make(folder: Path, key: str = "one") -> Shards:
    shards = Shards(folder, key)
    for number, content in ((1, b"second\n"), (0, b"first\n")):
        shards.add(number, content)
    return shards


def test_shards_are_joined_in_order_and_found_again(tmp_path):
    _make(tmp_path / "shards")
    again = Shards(tmp_path / "shards", "one")
    assert [number in again for number in range(3)] == [True, True, False]
    assert len(again) == 2
    again.join(tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes() == b"first\nsecond\n"


def test_shards_of_another_key_are_removed(tmp_path):
    _make(tmp_path / "shards")
    assert len(Shards(tmp_path / "shards", "other")) == 0
    assert not (tmp_path / "shards").exists()


def test_damaged_missing_and_unlisted_shards_are_made_again(tmp_path):
    folder = tmp_path / "shards"
    _make(folder).add(2, b"third\n")
    (folder / "0000000").write_bytes(b"firs")
    (folder / "0000001").unlink()
    (folder / "0000003").write_bytes(b"written, but killed before the index\n")
    again = Shards(folder, "one")
    assert [number in again for number in range(4)] == [False, False, True, False]


def test_a_damaged_index_means_no_shards(tmp_path):
    folder = tmp_path / "shards"
    for content in (b"", b'{"key": "one"}', b'{"key": "one", "shards": [1]}', b"\xff"):
        _make(folder)
        (folder / INDEX).write_bytes(content)
        assert len(Shards(folder, "one")) == 0
