from pathlib import Path

import pytest

from fairseq_sharing.errors import SharingError
from fairseq_sharing.preparation.recipe import build_recipe, files_recipe, load_recipe, recipe_names

ONE_TEXT = {"source_lang": "en", "splits": {"train": {"en": {"path": "text.en"}}}}


def test_every_recipe_loads_and_has_a_readme():
    assert {"multi30k", "toy"} <= set(recipe_names())
    from fairseq_sharing.resources import recipes_dir

    for name in recipe_names():
        assert load_recipe(name).dataset == name
        assert (recipes_dir() / name / "README.md").is_file()


def test_multi30k_has_the_published_sizes_and_a_checksum_for_every_file():
    recipe = load_recipe("multi30k")
    assert {name: corpora[0].lines for name, corpora in recipe.splits.items()} == {
        "train": 29_000,
        "valid": 1_014,
        "test_2016_flickr": 1_000,
        "test_2017_flickr": 1_000,
        "test_2017_mscoco": 461,
    }
    assert recipe.tests == ["test_2016_flickr", "test_2017_flickr", "test_2017_mscoco"]
    assert len({source.sha256 for corpora in recipe.splits.values() for source in corpora[0].texts.values()}) == 10
    assert recipe.subword == {"name": "bpe", "size": 10_000}


def test_flags_override_the_recipe():
    recipe = load_recipe(
        "multi30k", {"subword_size": 500, "max_ratio": 2.0, "source_lang": "de", "target_lang": "en", "subword": None}
    )
    assert recipe.subword == {"name": "bpe", "size": 500}
    assert recipe.cleaning["max_ratio"] == 2.0
    assert recipe.languages == {"source": "de", "target": "en"}


@pytest.mark.parametrize(
    ("flags", "tokenizer", "subword"),
    [
        ({}, "moses", "bpe"),
        ({"subword": "sentencepiece"}, "none", "sentencepiece"),
        ({"subword": "sentencepiece", "tokenizer": "moses"}, "moses", "sentencepiece"),
        ({"subword": "none"}, "moses", "none"),
    ],
)
def test_sentencepiece_reads_plain_text_by_default(flags: dict, tokenizer: str, subword: str):
    recipe = load_recipe("multi30k", flags)
    assert (recipe.tokenizer["name"], recipe.subword["name"]) == (tokenizer, subword)


def test_sentencepiece_has_settings_of_its_own():
    flags = {"subword": "sentencepiece", "character_coverage": 0.9995, "max_sentence_length": 9000}
    size = {"name": "sentencepiece", "size": 10_000}
    own = {"character_coverage": 0.9995, "max_sentence_length": 9000}
    assert load_recipe("multi30k", flags).subword == {**size, **own}
    assert load_recipe("multi30k", {"subword": "sentencepiece"}).subword == size
    content = {**ONE_TEXT, "valid_every": 2, "subword": {**size, "character_coverage": 0.99}}
    assert build_recipe("mine", content).subword == {**size, "character_coverage": 0.99}
    assert build_recipe("mine", content, {"subword": "bpe"}).subword == {"name": "bpe", "size": 10_000}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"subword": "wordpiece"}, "--subword must be one of bpe, sentencepiece, none, got 'wordpiece'"),
        ({"tokenizer": "spacy"}, "--tokenizer must be one of moses, none, got 'spacy'"),
        ({"subword_size": 0}, "--subword-size must be at least 1, got 0"),
        ({"subword": "none", "subword_size": 9}, "--subword-size cannot be used with --subword none, got 9"),
        ({"min_tokens": 0}, "--min-tokens must be at least 1, got 0"),
        ({"max_tokens": 0}, "--max-tokens must be at least 1, got 0"),
        ({"max_ratio": 0.5}, "--max-ratio must be at least 1, got 0.5"),
        ({"max_ratio": float("nan")}, "--max-ratio must be at least 1, got nan; allowed: finite numbers"),
        ({"max_ratio": float("inf")}, "--max-ratio must be at least 1, got inf; allowed: finite numbers"),
        ({"max_ratio": True}, "--max-ratio must be at least 1, got True"),
        ({"max_tokens": float("inf")}, "--max-tokens must be at least 1, got inf; allowed: integers"),
        ({"min_tokens": 1.5}, "--min-tokens must be at least 1, got 1.5; allowed: integers"),
        ({"max_word_length": float("nan")}, "--max-word-length must be at least 1, got nan; allowed: integers"),
        ({"subword_size": 7.5}, "--subword-size must be at least 1, got 7.5; allowed: integers"),
        ({"character_coverage": 0.99}, "--character-coverage cannot be used with --subword bpe, got 0.99"),
        ({"max_sentence_length": 9}, "--max-sentence-length cannot be used with --subword bpe, got 9"),
        (
            {"subword": "sentencepiece", "character_coverage": 0.5},
            "--character-coverage must be between 0.98 and 1, got 0.5",
        ),
        (
            {"subword": "sentencepiece", "max_sentence_length": 0},
            "--max-sentence-length must be at least 1, got 0; allowed: integers",
        ),
        ({"target_lang": "en"}, "--source-lang and --target-lang must differ, got 'en' twice"),
        ({"target_lang": "fr"}, "train has no text in fr; allowed: de, en"),
        ({"source_lang": "../en"}, "--source-lang must consist of letters, digits and _, such as en, got '../en'"),
    ],
)
def test_bad_flags_are_named_with_what_is_allowed(flags: dict, message: str):
    with pytest.raises(SharingError) as error:
        load_recipe("multi30k", flags)
    assert message in str(error.value)


@pytest.mark.parametrize("lines", [0, -1, 1.5, float("nan"), "many", True, []])
def test_the_number_of_lines_must_be_a_positive_integer(lines: object):
    text = {"lines": lines, "en": {"path": "a.en"}, "de": {"path": "a.de"}}
    content = {"source_lang": "en", "target_lang": "de", "splits": {"train": text, "valid": text}}
    with pytest.raises(
        SharingError, match=r"dataset mine: lines of train must be at least 1, got .*; allowed: integers"
    ):
        build_recipe("mine", content)


@pytest.mark.parametrize("text", [{"url": 5}, {"url": "http://x/y", "sha256": 10**63}, {"path": None}])
def test_sources_must_be_strings(text: dict):
    content = {"source_lang": "en", "splits": {name: {"en": text} for name in ("train", "valid")}}
    with pytest.raises(SharingError, match="dataset mine: train: expected lines: N"):
        build_recipe("mine", content)


def test_the_toy_corpus_has_fixed_languages():
    with pytest.raises(SharingError, match="of dataset toy must be en or de, got xx and de"):
        load_recipe("toy", {"source_lang": "xx"})
    assert load_recipe("toy", {"source_lang": "de", "target_lang": "en"}).source_lang == "de"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"splits": {}}, "not a recipe; required: source_lang, splits; optional: target_lang"),
        ({"source_lang": "en", "target_lang": "de", "splits": {}, "size": 3}, "not a recipe; required: source_lang"),
        ({"source_lang": "en", "target_lang": "de", "splits": {}}, "no train split; required: train and valid"),
        ({"source_lang": "en", "target_lang": "de", "splits": {"train": {"en": "x"}}}, "train: expected lines: N"),
        (
            {
                "source_lang": "en",
                "target_lang": "de",
                "splits": {name: {lang: {"url": "http://x/y"} for lang in ("en", "de")} for name in ("train", "valid")},
            },
            "train.en requires a path, or a url or file and its sha256 (64 digits, or unknown)",
        ),
        (
            {"source_lang": "en", "splits": {}, "tokenizer": "none"},
            "dataset mine: tokenizer must be a mapping with name and settings, got none",
        ),
        (
            {"source_lang": "en", "splits": {}, "tokenizer": {"lower_case": True}},
            "dataset mine: tokenizer: lower_case: True; allowed: name, and true or false for normalize, "
            "aggressive_dashes, escape, lowercase",
        ),
        ({"source_lang": "en", "splits": {}, "tokenizer": {"escape": "no"}}, "tokenizer: escape: no; allowed: name"),
        ({**ONE_TEXT, "valid_every": 1}, "dataset mine: valid_every must be at least 2, got 1; allowed: integers"),
        ({**ONE_TEXT, "valid_every": "23"}, "valid_every must be at least 2, got 23; allowed: integers"),
        ({**ONE_TEXT, "valid_every": 23, "exclude_held_out": True}, "valid_every 23; allowed: without a valid split"),
        ({**ONE_TEXT, "expected": {"test": 5}}, "no valid split"),
        (
            {**ONE_TEXT, "valid_every": 23, "expected": {"test": 5}},
            "split of expected must be one of train, valid, got 'test'",
        ),
        (
            {**ONE_TEXT, "valid_every": 23, "expected": {"train": "many"}},
            "expected pairs of train must be at least 1, got many; allowed: integers",
        ),
        (
            {**ONE_TEXT, "valid_every": 23, "expected": 5},
            "split of expected must be one of train, valid, got 'expected'",
        ),
        (
            {"source_lang": "en", "splits": {"train": {"en": {"path": "x", "markup": "tmx"}}}, "valid_every": 2},
            "markup of train.en must be one of iwslt_tags, iwslt_xml, got 'tmx'",
        ),
    ],
)
def test_bad_recipes_are_refused(content: dict, message: str):
    with pytest.raises(SharingError) as error:
        build_recipe("mine", content)
    assert message in str(error.value)


def test_unknown_dataset_names_the_known_ones():
    with pytest.raises(
        SharingError, match=r"DATASET must be one of iwslt14_de_en, .*files, or a recipe\.yaml, got 'wmt99'"
    ):
        load_recipe("wmt99")


def test_files_recipe_finds_plain_and_compressed_texts(tmp_path: Path):
    for name in ("train.en", "train.de.gz", "dev.en", "dev.de"):
        (tmp_path / name).touch()
    languages = {"source_lang": "en", "target_lang": "de"}
    recipe = files_recipe(f"{tmp_path}/train", f"{tmp_path}/dev", [f"own={tmp_path}/dev"], languages)
    assert recipe.splits["train"][0].texts["de"].path == f"{tmp_path}/train.de.gz"
    assert recipe.tests == ["own"]
    assert recipe.cleaning["max_ratio"] == 1.5
    for arguments, message in [
        ((None, "x", [], languages), "--train is required for dataset 'files'"),
        (("x", "x", [], {"source_lang": "en"}), "--target-lang is required for dataset 'files'"),
        ((f"{tmp_path}/train", f"{tmp_path}/no", [], languages), "no.en: neither this file nor "),
        ((f"{tmp_path}/train", f"{tmp_path}/dev", ["x"], languages), "--test must be NAME=PREFIX, got 'x'"),
        ((f"{tmp_path}/train", f"{tmp_path}/dev", ["train=x"], languages), "the name 'train' is already in use"),
        ((f"{tmp_path}/train", f"{tmp_path}/dev", [f"a,b={tmp_path}/dev"], languages), "got 'a,b'"),
    ]:
        with pytest.raises(SharingError) as error:
            files_recipe(*arguments)
        assert message in str(error.value)


def test_local_paths_of_a_recipe_are_relative_to_it(tmp_path: Path):
    path = tmp_path / "mine" / "recipe.yaml"
    path.parent.mkdir()
    text = "{en: {path: a.en}, de: {path: a.de}}"
    path.write_text(f"source_lang: en\ntarget_lang: de\nsplits: {{train: {text}, valid: {text}}}\n")
    recipe = load_recipe(str(path))
    assert recipe.dataset == "mine"
    assert recipe.splits["train"][0].texts["en"].path == str(path.parent / "a.en")


@pytest.mark.parametrize(("name", "corpora"), [("wmt16_en_de", 3), ("wmt14_en_de", 3), ("news_commentary", 1)])
def test_wmt_recipes_test_on_whole_sets_and_name_the_cleaned_one(name: str, corpora: int):
    recipe = load_recipe(name)
    assert len(recipe.splits["train"]) == corpora
    lines = {test: recipe.splits[test][0].lines for test in recipe.tests}
    cleaned = lines.pop("newstest2014_cleaned", 2737)
    assert cleaned == 2737
    assert list(lines) == [f"newstest{year}" for year in range(2010, 2017)]
    assert list(lines.values()) == [2489, 3003, 3003, 3000, 3003, 2169, 2999]
    assert recipe.splits["valid"] == recipe.splits["newstest2013"]
    assert recipe.subword == {"name": "bpe", "size": 32_000}


def test_sacrebleu_sets_of_a_recipe_exist_in_sacrebleu():
    from sacrebleu.dataset import DATASETS

    names = [corpora[0].sacrebleu for corpora in load_recipe("wmt16_en_de").splits.values() if corpora[0].sacrebleu]
    assert len(names) == 9
    assert all("en-de" in DATASETS[name].langpairs for name in names)


def test_a_recipe_of_one_language_has_one_side():
    recipe = load_recipe("wikitext103")
    assert recipe.languages == {"source": "en"}
    assert recipe.cleaning is None
    with pytest.raises(SharingError, match=r"--max-tokens cannot be used with .*wikitext103.*, which keeps every line"):
        load_recipe("wikitext103", {"max_tokens": 9})


def test_existing_merges_are_a_file_next_to_the_recipe(tmp_path: Path):
    text = {"en": {"path": "a.en"}, "de": {"path": "a.de"}}
    content = {"source_lang": "en", "target_lang": "de", "splits": {"train": text, "valid": text}}
    content["subword"] = {"name": "bpe", "codes": "codes.bpe"}
    path = tmp_path / "recipe.yaml"
    assert build_recipe("mine", content, {}, path).subword == {"name": "bpe", "codes": str(tmp_path / "codes.bpe")}
    assert build_recipe("mine", content, {"subword_size": 5}, path).subword == {"name": "bpe", "size": 5}
    content["subword"] = {"merges": 3}
    with pytest.raises(
        SharingError, match=r"subword must be a mapping with name, and size or codes, .*, got \{'merges': 3\}"
    ):
        build_recipe("mine", content)
