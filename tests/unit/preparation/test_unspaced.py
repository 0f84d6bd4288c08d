from pathlib import Path

import pytest

from fairseq_sharing.errors import SharingError
from fairseq_sharing.preparation.prepare import prepare
from fairseq_sharing.preparation.recipe import files_recipe
from fairseq_sharing.preparation.unspaced import is_unspaced, removal_hint, subword_warning

LIMITS = {"min_tokens": 1, "max_tokens": 250, "max_ratio": 1.5, "max_word_length": 1000}


@pytest.mark.parametrize(
    ("codes", "unspaced"),
    [("zh zh_CN zho_Hans yue ja jpn_Jpan th my-MM kmr_Khmr", True), ("en de ko kor_Hang vi zh_Latn", False)],
)
def test_languages_without_spaces_are_known_by_code_or_script(codes: str, unspaced: bool):
    assert {code: is_unspaced(code) for code in codes.split()} == dict.fromkeys(codes.split(), unspaced)


def test_subwords_of_clauses_are_warned_about():
    assert subword_warning(["en", "de"], "bpe") is None
    assert subword_warning(["en", "zh"], "sentencepiece") is None
    assert subword_warning(["ja", "zh"], "bpe").startswith("ja and zh: written without spaces between words, so BPE")
    assert "the dictionary consists of whole clauses" in subword_warning(["en", "th"], "none")


def test_the_limit_that_removes_most_pairs_is_named():
    removed = {"empty": 1, "too_long": 0, "length_ratio": 60, "long_word": 0}
    assert removal_hint(removed, 200, ["en", "de"], LIMITS) == ""
    expected = "60 of 100 pairs exceed --max-ratio 1.5; raise it if the texts are parallel"
    assert removal_hint(removed, 100, ["en", "de"], LIMITS) == expected
    assert removal_hint(removed, 100, ["en", "zh"], LIMITS) == (
        f"{expected} (zh has no spaces between words, so a clause counts as one token)"
    )
    assert removal_hint({"empty": 9, "too_long": 0}, 10, ["en"], LIMITS) == "", "no flag keeps empty lines"


def test_a_corpus_that_cleaning_empties_names_the_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name, count in (("train", 20), ("valid", 2)):
        (tmp_path / f"{name}.en").write_text("a dog sees the man\n" * count)
        (tmp_path / f"{name}.zh").write_text("\u4e00\u53ea\u72d7\u770b\u89c1\u90a3\u4e2a\u4eba\n" * count)
    languages = {"source_lang": "en", "target_lang": "zh", "subword_size": 9}
    recipe = files_recipe(f"{tmp_path}/train", f"{tmp_path}/valid", [], languages)
    with pytest.raises(SharingError) as error:
        prepare(recipe, tmp_path / "data", workers=1)
    assert str(error.value) == (
        "dataset files: no training pairs left after cleaning; 20 of 20 pairs exceed --max-ratio 1.5; raise it if the "
        "texts are parallel (zh has no spaces between words, so a clause counts as one token)"
    )
    assert "warning: zh: written without spaces between words" in " ".join(capsys.readouterr().err.split())


def test_a_directory_that_fairseq_would_split_is_refused(tmp_path: Path):
    for name in ("train", "valid"):
        for lang in ("en", "de"):
            (tmp_path / f"{name}.{lang}").write_text("a dog\n")
    recipe = files_recipe(f"{tmp_path}/train", f"{tmp_path}/valid", [], {"source_lang": "en", "target_lang": "de"})
    with pytest.raises(SharingError, match=r"--out .*a:b: contains ':', at which fairseq splits paths; allowed"):
        prepare(recipe, tmp_path / "a:b", workers=1)
    assert not (tmp_path / "a:b").exists()
