"""Prepare IWSLT 2014 from an archive of the same form: tagged training texts and test sets in XML."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from archives import of_any_content, write_archive

from fairseq_sharing.files import read_lines, sha256
from fairseq_sharing.preparation.prepare import prepare
from fairseq_sharing.preparation.recipe import Recipe, load_recipe
from fairseq_sharing.preparation.text import Pipeline

TALKS, SENTENCES = 4, 30  # per talk
TESTS = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")
NAMES = {"de": ("Der Hund", "„Ja“, sagt Mann"), "en": ("The dog", '"Yes", says man')}


def tagged(lang: str) -> str:
    """Write the training text of one side: a head and some sentences per talk."""
    dog, man = NAMES[lang]
    lines = []
    for talk in range(TALKS):
        lines += [
            f"<url>http://www.ted.com/{talk}</url>",
            "<keywords>talks, dogs</keywords>",
            f"<talkid>{talk}</talkid>",
        ]
        lines += [f"<title>{dog} {talk}</title>", f"<description>TED Talk: {man} {talk}.</description>"]
        lines += [f" {dog} {talk} {number} ... & {man} {number}, OK." for number in range(SENTENCES)]
    lines[8] = "Short ." if lang == "en" else "Viel länger als die andere Seite des Paars ."
    return "".join(f"{line}\n" for line in lines)


def xml(lang: str, name: str) -> str:
    segments = [
        f'<seg id="{number}"> {NAMES[lang][0]} {number} of {name}\u2019s &amp; others </seg>' for number in (1, 2)
    ]
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', '<doc docid="1">', f"<title>{name}</title>", *segments, "</doc>"]
    return "".join(f"{line}\n" for line in lines)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    members = {f"de-en/train.tags.de-en.{lang}": tagged(lang) for lang in ("de", "en")}
    members |= {f"de-en/IWSLT14.{name}.de-en.{lang}.xml": xml(lang, name) for name in TESTS for lang in ("de", "en")}
    (tmp_path / "mirror").mkdir()
    write_archive(tmp_path / "mirror" / "de-en.tgz", members)
    recipe = load_recipe("iwslt14_de_en", {"subword_size": 60})
    return replace(recipe, splits={name: (*map(of_any_content, corpora),) for name, corpora in recipe.splits.items()})


def test_the_usual_cleaning_and_split(recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out, mirror = tmp_path / "data", tmp_path / "mirror"
    manifest = prepare(recipe, out, mirror=str(mirror), workers=1)
    told = " ".join(capsys.readouterr().err.split())
    raw = list(read_lines(out / "raw" / "train.de"))
    assert len(raw) == TALKS * (SENTENCES + 2), "URLs, keywords and numbers of talks are no sentences"
    assert raw[:3] == ["Der Hund 0", "TED Talk: „Ja“, sagt Mann 0.", " Der Hund 0 0 ... & „Ja“, sagt Mann 0, OK."]
    removed = {"empty": 0, "too_long": 0, "length_ratio": 1, "long_word": 0}
    assert manifest["train"] == {"raw_lines": 128, "lines": 122, "removed": removed}
    assert manifest["valid"] == {"lines": 5, "empty": 0}
    assert "train: 122 pairs after cleaning; the recipe expects 160,239" in told
    assert "valid: 5 pairs after cleaning; the recipe expects 7,283" in told
    tokens = list(read_lines(out / "tok" / "train+valid.de"))
    assert tokens[0] == "der hund 0"
    assert tokens[2] == "der hund 0 0 ... & „ ja “ , sagt mann 0 , ok ."
    for lang in ("de", "en"):
        tokens = list(read_lines(out / "tok" / f"train+valid.{lang}"))
        assert list(read_lines(out / "tok" / f"valid.{lang}")) == tokens[22::23]
        assert list(read_lines(out / "tok" / f"train.{lang}")) == [
            line for number, line in enumerate(tokens, 1) if number % 23
        ]
    assert (out / "bin" / "valid.de-en.en.idx").is_file()

    assert list(read_lines(out / "raw" / "test.en")) == [
        f"The dog {number} of {name}'s & others" for name in TESTS for number in (1, 2)
    ]
    assert manifest["tests"][0]["segments"] == 10
    (record,) = (out / "download").glob("*/de-en.tgz.sha256")
    assert record.read_text() == sha256(mirror / "de-en.tgz") + "\n"
    assert Pipeline.from_manifest(out).tokenize("Der Hund", "source") == "der hund"

    assert prepare(recipe, out, mirror=str(mirror), workers=1)["files"] == manifest["files"]
    assert "nothing to do" in " ".join(capsys.readouterr().err.split())
    prepare(replace(recipe, valid_every=40), out, mirror=str(mirror), workers=1)
    assert len(list(read_lines(out / "tok" / "valid.de"))) == 3


def test_the_recipe_has_the_published_sizes():
    recipe = load_recipe("iwslt14_de_en")
    assert [corpus.lines for corpus in recipe.splits["test"]] == [887, 1165, 1565, 1433, 1700]
    assert sum(corpus.lines for corpus in recipe.splits["test"]) == recipe.expected["test"] == 6750
    assert (recipe.expected["train"] + recipe.expected["valid"]) // 23 == recipe.expected["valid"] == 7283
    assert (recipe.cleaning["max_tokens"], recipe.cleaning["max_ratio"], recipe.subword["size"]) == (175, 1.5, 10_000)
