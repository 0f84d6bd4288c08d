import gzip
import io
import os
from itertools import product
from pathlib import Path

import pytest
from subword_nmt.apply_bpe import BPE
from subword_nmt.learn_bpe import learn_bpe

from fairseq_sharing.preparation import bpe
from fairseq_sharing.preparation.bpe import BytePairEncoding, same_in_any_order

MIRROR = os.environ.get("FAIRSEQ_SHARING_MIRROR")

# Here (ab c) has two places in "abcabc", and merging the first makes (abc ab), which comes before (ab c).
CODES = "#version: 0.2\na b\nabc ab\nab c\nb c</w>\nab c</w>\nü ü\n"


def check(codes: Path, text: str) -> None:
    with codes.open(encoding="utf-8") as file:
        reference = BPE(file)
    expected = "\n".join(reference.segment(line) for line in text.split("\n"))
    assert BytePairEncoding(codes).segment(text) == expected


@pytest.mark.parametrize("learned", [True, False])
def test_every_word_is_cut_as_by_subword_nmt(tmp_path: Path, learned: bool):
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


def test_merges_whose_order_in_a_word_matters_are_told():
    assert same_in_any_order([("a", "b"), ("ab", "c"), ("abc", "ab")])
    assert not same_in_any_order([("a", "b"), ("abc", "ab"), ("ab", "c")])


def test_a_full_cache_is_emptied_and_nothing_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
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
