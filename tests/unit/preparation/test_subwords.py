import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from fairseq_sharing.errors import SharingError
from fairseq_sharing.preparation import subwords
from fairseq_sharing.preparation.parallel import Workers
from fairseq_sharing.preparation.subwords import copy_bpe, count_words, learn_bpe, learn_sentencepiece

ENGLISH = ["the old dogs sleep", "the young dog sleeps", "older cats slept"] * 3
GERMAN = ["die alten Hunde schlafen", "der junge Hund schläft", "ältere Katzen haben geschlafen"] * 3


@pytest.fixture
def texts(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "train.en", tmp_path / "train.de"]
    for path, lines in zip(paths, (ENGLISH, GERMAN), strict=True):
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return paths


def test_joined_bpe_is_what_subword_nmt_learns_from_both_texts_together(tmp_path: Path, texts: list[Path]):
    both = tmp_path / "both"
    both.write_bytes(b"".join(path.read_bytes() for path in texts))
    reference = tmp_path / "reference"
    subprocess.run(
        [sys.executable, "-m", "subword_nmt.learn_bpe", "-s", "30", "-i", both, "-o", reference],
        check=True,
        capture_output=True,
    )
    assert learn_bpe(texts, 30, tmp_path / "codes.bpe", Workers(1)) == 30
    assert (tmp_path / "codes.bpe").read_bytes() == reference.read_bytes()


def test_bpe_stops_when_no_pair_is_left(tmp_path: Path, texts: list[Path]):
    learned = learn_bpe(texts, 10_000, tmp_path / "codes.bpe", Workers(1))
    assert 30 < learned < 200
    assert (tmp_path / "codes.bpe").read_text(encoding="utf-8").count("\n") == learned + 1


def test_bpe_of_single_characters_is_refused(tmp_path: Path):
    path = tmp_path / "train.en"
    path.write_text("a b\nc\n")
    with pytest.raises(SharingError, match="no words to learn subwords from; use --subword none"):
        learn_bpe([path], 10, tmp_path / "codes.bpe", Workers(1))


def test_sentencepiece_is_the_same_every_time(tmp_path: Path, texts: list[Path]):
    for name in ("one", "two"):
        assert learn_sentencepiece(texts, {"size": 40}, tmp_path / name, 18) == 40
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_too_many_pieces_are_refused_by_the_flag(tmp_path: Path, texts: list[Path]):
    with pytest.raises(SharingError) as error:
        learn_sentencepiece(texts, {"size": 9999}, tmp_path / "model", 18)
    message = r"--subword-size 9999: the training text has too few words; allowed: at most (\d+) pieces"
    most = int(re.fullmatch(message, str(error.value))[1])
    assert learn_sentencepiece(texts, {"size": most}, tmp_path / "model", 18) == most


def test_too_few_pieces_for_the_characters_are_refused_with_what_helps(tmp_path: Path):
    common = "".join(map(chr, range(0x4E00, 0x4E64)))
    (tmp_path / "text.zh").write_text(f"{common}\n" * 50 + "".join(map(chr, range(0x5000, 0x5032))) + "\n")
    with pytest.raises(SharingError) as error:
        learn_sentencepiece([tmp_path / "text.zh"], {"size": 110}, tmp_path / "model", 51)
    least = 100 + 50 + 1 + 3  # characters, the mark of a space, and three symbols
    assert str(error.value) == (
        "--subword-size 110: the training text has too many different characters; allowed: at least "
        f"{least} pieces, or a --character-coverage below 1"
    )
    settings = {"size": 104, "character_coverage": 0.985}  # all of the text but its last line
    assert learn_sentencepiece([tmp_path / "text.zh"], settings, tmp_path / "model", 51) == 104


def test_long_lines_are_reported_or_refused_and_can_be_allowed(tmp_path: Path, texts: list[Path], capsys):
    (tmp_path / "long.en").write_text("lang " * 1000 + "\n" + "lang " * 900 + "\n")
    with pytest.raises(SharingError) as error:
        learn_sentencepiece([tmp_path / "long.en"], {"size": 9}, tmp_path / "model", 2)
    assert str(error.value) == (
        "--subword sentencepiece: all 2 lines of the training text are longer than 4,192 bytes; allowed: shorter "
        "lines, or a higher --max-sentence-length"
    )
    longer = {"size": 9, "max_sentence_length": 5000}
    assert learn_sentencepiece([tmp_path / "long.en"], longer, tmp_path / "model", 2) == 9
    assert learn_sentencepiece([*texts, tmp_path / "long.en"], {"size": 40}, tmp_path / "model", 20) == 40
    told = " ".join(capsys.readouterr().err.split())
    assert "SentencePiece did not learn from 2 of 20 lines, which are longer than 4,192 bytes" in told


def test_words_are_counted_once_for_any_size_of_parts(
    tmp_path: Path, texts: list[Path], monkeypatch: pytest.MonkeyPatch
):
    expected = Counter(word for line in ENGLISH + GERMAN for word in line.split())
    monkeypatch.setattr(subwords, "_BLOCK", 2)
    for part in (1, 7, 20, 21, 1000):
        monkeypatch.setattr(subwords, "_PART", part)
        assert count_words("count", texts, Workers(1)) == expected, f"parts of {part} bytes"


def test_merges_of_another_format_are_refused(tmp_path: Path):
    (tmp_path / "codes").write_text("#version: 0.2\na b\nab c</w>\n")
    assert copy_bpe(tmp_path / "codes", tmp_path / "copy") == 2
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "codes").read_bytes()
    for content in ("a b\n", "#version: 0.2\na b c\n", ""):
        (tmp_path / "codes").write_text(content)
        with pytest.raises(SharingError, match=r"codes: (contains no merges|(not )?merges of )"):
            copy_bpe(tmp_path / "codes", tmp_path / "copy")
