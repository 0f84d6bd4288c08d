from pathlib import Path

import pytest

from fairseq_sharing.errors import SharingError
from fairseq_sharing.preparation.sources import Text
from fairseq_sharing.preparation.unpack import unpack


def run(folder: Path, source: bytes, target: bytes, expected: int | None = None) -> dict[str, int]:
    paths = [folder / "in.en", folder / "in.de"]
    for path, content in zip(paths, (source, target), strict=True):
        path.write_bytes(content)
    return unpack("test", [[*map(Text, paths)]], [folder / "raw" / "test.en", folder / "raw" / "test.de"], [expected])


def test_line_ends_and_byte_order_marks_are_normalized_and_counted(tmp_path: Path):
    counts = run(tmp_path, b"\xef\xbb\xbfone\r\ntwo\r\n", b"eins\nzw\rei")
    assert (tmp_path / "raw/test.en").read_bytes() == b"one\ntwo\n"
    assert (tmp_path / "raw/test.de").read_bytes() == b"eins\nzw ei\n"
    assert counts == {
        "lines": 2,
        "byte_order_marks": 1,
        "carriage_returns_at_line_end": 2,
        "lines_with_line_breaks_inside": 1,
    }


def test_a_line_separator_stays_and_does_not_shift_the_sides(tmp_path: Path):
    text = "one\u2028half\n\nthree\n".encode()
    assert run(tmp_path, text, b"eins\nzwei\ndrei\n", expected=3)["lines"] == 3
    assert (tmp_path / "raw/test.en").read_bytes() == text


def test_unequal_sides_are_refused_with_both_lengths(tmp_path: Path):
    with pytest.raises(SharingError, match=r"test: the two sides differ .*in\.en has 2 lines, .*in\.de has 3"):
        run(tmp_path, b"a\nb\n", b"a\nb\nc\n")


def test_a_wrong_number_of_lines_is_refused_with_both_numbers(tmp_path: Path):
    with pytest.raises(SharingError, match=r"in\.en: 2 lines, expected 3"):
        run(tmp_path, b"a\nb\n", b"a\nb\n", expected=3)


def test_empty_files_are_refused(tmp_path: Path):
    with pytest.raises(SharingError, match=r"in\.en: empty; allowed: at least one line"):
        run(tmp_path, b"", b"")


def test_corpora_follow_each_other_and_are_checked_one_by_one(tmp_path: Path):
    for name, lines in (("one.en", 2), ("one.de", 2), ("two.en", 3), ("two.de", 3)):
        (tmp_path / name).write_text("".join(f"{name} {number}\n" for number in range(lines)))
    corpora = [[Text(tmp_path / f"{name}.{lang}") for lang in ("en", "de")] for name in ("one", "two")]
    outputs = [tmp_path / "raw" / f"train.{lang}" for lang in ("en", "de")]
    assert unpack("train", corpora, outputs, [2, 3]) == {"lines": 5}
    assert outputs[1].read_text() == "one.de 0\none.de 1\ntwo.de 0\ntwo.de 1\ntwo.de 2\n"
    with pytest.raises(SharingError, match=r"two\.en: 3 lines, expected 4"):
        unpack("train", corpora, outputs, [2, 4])
