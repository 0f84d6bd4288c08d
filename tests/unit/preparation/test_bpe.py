import gzip
import io
import os
import random
from itertools import product
from pathlib import Path

import pytest
from subword_nmt.apply_bpe import BPE
from subword_nmt.learn_bpe import learn_bpe

from fairseq_sharing.preparation import bpe, subwords
from fairseq_sharing.preparation.bpe import BytePairEncoding, same_in_any_order
from fairseq_sharing.preparation.parallel import Workers

MIRROR = os.environ.get("FAIRSEQ_SHARING_MIRROR")

# Here (ab c) has two places in "abcabc", and merging the first makes (abc ab), which comes before (ab c).
CODES = "#version: 0.2\na b\nabc ab\nab c\nb c</w>\nab c</w>\nü ü\n"


def check(codes: Path, text: str) -> None:
    with codes.open(encoding="utf-8") as file:
        reference = BPE(file)
    expected = "\n".join(reference.segment(line) for line in text.split("\n"))
    assert BytePairEncoding(codes).segment(text) == expected


@pytest.mark.parametrize("learned", [True, False])
def test_every_word_is_split_like_by_subword_nmt(tmp_path: Path, learned: bool):
    codes = tmp_path / "codes.bpe"
    if learned:
        counted = "".join(f"{''.join(word)} {number}\n" for number, word in enumerate(product("abü", repeat=5)))
        with codes.open("w", encoding="utf-8") as file:
            learn_bpe(io.StringIO(counted), file, 60, is_dict=True)
    else:
        codes.write_text(CODES, encoding="utf-8")
    words = ["".join(letters) for length in range(1, 9) for letters in product("abü", repeat=length)]
    words += [word.replace("ü", "c") for word in words]
    check(codes, " ".join(words) + "\n\n<unk> @@ xyz 中b\n")


# Letters that occur in merges; then characters with a special meaning in fairseq, subword-nmt or tokenizers.
LETTERS = ["a", "b", "c", "ж", "д", "e\u0301", "\u0301", "ü", "中", "\\"]
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "@@", "</w>", "[UNK]", "##", "\u2581", "\u0120", "madeupword0000"]
STRANGE = ["x", "\u200b", "😀", "\ufeff", "\u00ad", "<", ">", "@", "/", "\U0001d51e", "\u1100\u1161"]


def draw_words(draw: random.Random, parts: list[str], number: int, longest: int) -> list[str]:
    return ["".join(draw.choices(parts, k=draw.randint(1, longest))) for _ in range(number)]


@pytest.mark.parametrize("special", [[one] for one in SPECIAL] + [SPECIAL], ids=[*SPECIAL, "all"])
@pytest.mark.parametrize("size", [10, 60])
def test_special_symbols_of_other_programs_are_plain_text(tmp_path: Path, special: list[str], size: int):
    draw = random.Random(size)
    starts = [draw.choice(special) + word for word in draw_words(draw, LETTERS[:4], 1500, 2)]
    text = " ".join([*starts, *draw_words(draw, LETTERS, 1500, 3)])
    (tmp_path / "text").write_text(text + "\n", encoding="utf-8")
    codes = tmp_path / "codes.bpe"
    number = subwords.learn_bpe([tmp_path / "text"], size, codes, Workers(1))
    expected = io.StringIO()
    learn_bpe(io.StringIO(text), expected, size)
    assert codes.read_text(encoding="utf-8") == expected.getvalue()
    assert number == size
    words = draw_words(draw, LETTERS + 2 * special + STRANGE, 5000, 7)
    check(codes, "\n".join([*words, *special, "<unk>a <unk>b", "жc жd", "a<unk>"]))


def test_the_unknown_token_is_not_a_symbol_of_merges(tmp_path: Path):
    text = "<unk>a <unk>b <unk>c <unk>d"
    codes = tmp_path / "codes.bpe"
    with codes.open("w", encoding="utf-8") as file:
        learn_bpe(io.StringIO("\n".join([text] * 9)), file, 9)
    assert BytePairEncoding(codes).segment("жc жd <unk>c") == "ж@@ c ж@@ d <unk>c"


@pytest.mark.parametrize("text", ["a  b", " a b ", "  ", "ab\r", "a\u00a0b a\tb", "\u3000a"])
def test_spaces_are_those_of_subword_nmt(tmp_path: Path, text: str):
    codes = tmp_path / "codes.bpe"
    codes.write_text(CODES, encoding="utf-8")
    check(codes, text)


def test_codes_of_the_first_version_are_applied_as_such(tmp_path: Path):
    codes = tmp_path / "codes.bpe"
    codes.write_text("a b\nb </w>\nab </w>\n", encoding="utf-8")
    check(codes, "ab abb cab b")


def test_merges_whose_order_in_a_word_matters_are_detected():
    assert same_in_any_order([("a", "b"), ("ab", "c"), ("abc", "ab")])
    assert not same_in_any_order([("a", "b"), ("abc", "ab"), ("ab", "c")])


def test_a_full_cache_is_cleared_without_losing_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bpe, "_CACHE_WORDS", 3)
    codes = tmp_path / "codes.bpe"
    codes.write_text(CODES, encoding="utf-8")
    encoding = BytePairEncoding(codes)
    lines = ["abx cab", "cab ba", "abx abx aby"]
    assert [encoding.segment(line) for line in lines] == ["ab@@ x c@@ a@@ b", "c@@ a@@ b b@@ a", "ab@@ x ab@@ x ab@@ y"]


@pytest.mark.skipif(not MIRROR, reason="FAIRSEQ_SHARING_MIRROR names no folder of real texts")
@pytest.mark.parametrize("lang", ["en", "de"])
def test_real_merges_on_real_text(tmp_path: Path, lang: str):
    folder = Path(str(MIRROR)) / "wmt16-sample"
    codes = tmp_path / "codes.bpe"
    codes.write_bytes(gzip.decompress((folder / "bpe.32000.gz").read_bytes()))
    text = gzip.decompress((folder / f"europarl-v7.de-en.{lang}.gz").read_bytes()).decode()
    check(codes, "\n".join(" ".join(line.split()) for line in text.split("\n")[:3000]))
