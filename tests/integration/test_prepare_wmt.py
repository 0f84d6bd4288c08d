"""Prepare recipes from a mirror of archives that have the right names and members but small texts."""

import re
import zipfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import sacrebleu.dataset.base
from archives import of_any_content, write_archive
from sacrebleu.dataset import DATASETS

from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import read_lines
from fairseq_sharing.preparation import toy
from fairseq_sharing.preparation.prepare import prepare
from fairseq_sharing.preparation.recipe import Recipe, load_recipe

PAIRS = 60


@pytest.fixture(params=["wmt16_en_de", "wmt14_en_de"])
def recipe(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    recipe = load_recipe(request.param, {"subword_size": 200, "max_ratio": 9.0})
    mirror, corpora = tmp_path / "mirror", toy.generate({"train": 3 * PAIRS, "test": 5})
    mirror.mkdir()
    archives: dict[str, dict[str, str]] = defaultdict(dict)
    for number, corpus in enumerate(recipe.splits["train"]):
        pairs = corpora["train"][number * PAIRS : (number + 1) * PAIRS]
        for lang, source in corpus.texts.items():
            name = source.url.rsplit("/", 1)[-1]
            archives[name][source.member] = "".join(f"{pair[lang]}\n" for pair in pairs)
    for name, members in archives.items():
        write_archive(mirror / name, members)
    monkeypatch.setattr(sacrebleu.dataset.base, "SACREBLEU_DIR", str(tmp_path / "sacrebleu"))
    for name in {corpora[0].sacrebleu for corpora in recipe.splits.values()} - {""}:
        known = DATASETS[name]
        segments = [[f'<seg id="1">{name} {pair[lang]}</seg>\n' for pair in corpora["test"]] for lang in ("en", "de")]
        members = dict(zip(known.langpairs["en-de"], map("".join, segments), strict=True))
        digest = write_archive(mirror / f"{name.replace('/', '_')}.{known.data[0].rsplit('/', 1)[-1]}", members)
        stand_in = type(known)(name, data=known.data, md5=[digest], langpairs=known.langpairs)
        monkeypatch.setitem(DATASETS, name, stand_in)
    return replace(recipe, splits={name: (*map(of_any_content, corpora),) for name, corpora in recipe.splits.items()})


def test_three_corpora_and_the_sets_of_sacrebleu(recipe: Recipe, tmp_path: Path):
    out = tmp_path / "data"
    manifest = prepare(recipe, out, mirror=str(tmp_path / "mirror"), workers=1)
    assert manifest["train"]["raw_lines"] == 3 * PAIRS
    assert [test["segments"] for test in manifest["tests"]] == [5] * 8
    for name, known in (("newstest2014", "wmt14/full"), ("newstest2014_cleaned", "wmt14"), ("newstest2010", "wmt10")):
        assert next(read_lines(out / f"raw/{name}.de")).startswith(f"{known} ")
    news = f"training-parallel-nc-v{11 if recipe.dataset == 'wmt16_en_de' else 9}.tgz"
    recorded = {path.name for path in (out / "download").glob("*/*")}
    archives = ("training-parallel-europarl-v7.tgz", "training-parallel-commoncrawl.tgz", news)
    assert recorded == {f"{archive}.sha256" for archive in archives}
    assert prepare(recipe, out, mirror=str(tmp_path / "mirror"), workers=1)["files"] == manifest["files"]
    archive = tmp_path / "mirror" / news
    archive.write_bytes(archive.read_bytes() + b"\0")
    with pytest.raises(SharingError, match=rf"{re.escape(news)}: SHA-256 is \w+, expected"):
        prepare(recipe, out, mirror=str(tmp_path / "mirror"), workers=1)
    assert prepare(recipe, out, workers=1)["files"] == manifest["files"], "a finished directory needs no archives"


def test_wikitext_keeps_every_line_and_word(tmp_path: Path):
    recipe = load_recipe("wikitext103")
    texts = {
        "train": " \n = Dogs = \n \n A <unk> dog @-@ like one . \n" * 20,
        "valid": " A dog . \n",
        "test": " \n A cat . \n",
    }
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    with zipfile.ZipFile(mirror / "wikitext-103-v1.zip", "w") as archive:
        for split, text in texts.items():
            archive.writestr(f"wikitext-103/wiki.{split}.tokens", text)
    recipe = replace(recipe, splits={name: (*map(of_any_content, corpora),) for name, corpora in recipe.splits.items()})
    out = tmp_path / "data"
    manifest = prepare(recipe, out, mirror=str(mirror), workers=1)
    assert manifest["train"]["raw_lines"] == 80
    words = {line.split(" ")[0] for line in read_lines(out / "bin/dict.txt")}
    assert {"Dogs", "@-@", "like"} <= words
    # Every line ends with </s>, including empty lines; perplexity is over all of them.
    index = (out / "bin/test.idx").read_bytes()
    assert numpy.frombuffer(index, numpy.int32, 2, 26).tolist() == [1, 4]
