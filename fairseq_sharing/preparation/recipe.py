"""Read recipes, which define the sources and the preparation of a dataset's texts.

A recipe is a YAML file, ``data-prep/<dataset>/recipe.yaml``::

    source_lang: en
    target_lang: de               # omit for a language model (texts of one language)
    splits:                       # train, valid, and any number of named test sets
      train:                      # one corpus, or a list of corpora to concatenate
        - lines: 29000            # optional; checked
          en: {url: https://..., sha256: ..., member: a/b.en}     # member: file inside a .tgz, .tar or .zip
          de: {url: https://..., sha256: unknown}                 # recorded at the first download
        - en: {file: text.en.gz, sha256: ...}                     # no URL: requires --mirror
          de: {path: text.de}                                     # local; .gz is decompressed
          markup: iwslt_xml                                       # optional: the file's format, see markup.py
      valid: {lines: 3000, sacrebleu: wmt13}                      # a test set of sacreBLEU
    valid_every: 23               # instead of a valid split: every 23rd training pair after cleaning
    expected: {train: 160239}     # pairs after cleaning; a difference is reported
    generator: toy                # instead of texts: generate them
    exclude_held_out: false       # remove training pairs whose source is in another split
    cleaning: {min_tokens: 1, max_tokens: 250, max_ratio: 1.5, max_word_length: 1000}     # or none
    tokenizer: {name: moses, normalize: true, aggressive_dashes: false, escape: false, lowercase: false}
    subword: {name: bpe, size: 10000}           # or {name: bpe, codes: FILE}: merges learned elsewhere
    # or {name: sentencepiece, size: 8000, character_coverage: 1.0, max_sentence_length: 4192}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fairseq_sharing.documents import read_yaml
from fairseq_sharing.errors import SharingError
from fairseq_sharing.options import flag_of
from fairseq_sharing.preparation.fetch import UNKNOWN
from fairseq_sharing.preparation.markup import MARKUPS
from fairseq_sharing.preparation.settings import (
    check_at_least,
    check_choice,
    check_cleaning,
    check_subword,
    read_cleaning,
    read_subword,
    read_tokenizer,
)
from fairseq_sharing.preparation.text import TOKENIZERS
from fairseq_sharing.resources import recipes_dir

_NEEDED = ("source_lang", "splits")
_OPTIONAL = (
    *("target_lang", "valid_every", "expected", "generator", "exclude_held_out", "cleaning", "tokenizer", "subword"),
)


@dataclass(frozen=True)
class Source:
    """One text: a file given by URL, by its name in a mirror, or by local path; ``member`` is a file in that archive.

    ``markup`` is its format, see `markup.sentences`; empty for one sentence per line. ``sha256`` is the checksum of the
    file; UNKNOWN to record it at the first download.
    """

    url: str = ""
    file: str = ""
    sha256: str = ""
    path: str = ""
    member: str = ""
    markup: str = ""

    def __post_init__(self) -> None:
        if not all(isinstance(value, str) for value in vars(self).values()):
            raise TypeError("not all text")

    @property
    def location(self) -> str:
        """URL or name to fetch; empty for a local file."""
        return self.url or self.file


@dataclass(frozen=True)
class Corpus:
    """Parallel texts, or one text; ``lines`` is the expected number of lines, if known.

    ``sacrebleu`` names a test set that sacreBLEU fetches, instead of texts. A generated corpus has neither.
    """

    texts: dict[str, Source]
    lines: int | None = None
    sacrebleu: str = ""


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the content of a prepared data directory.

    Attributes:
        dataset: name of the dataset.
        source_lang: source language code.
        target_lang: target language code; empty for texts of one language.
        splits: the corpora of train, valid and the test sets, by name; test sets in the order of the report.
        generator: name of the generator of the texts; None for texts from files.
        exclude_held_out: remove training pairs whose source sentence is in another split.
        cleaning: limits for training pairs; None keeps all pairs.
        tokenizer: settings of text.Pipeline.
        subword: settings of text.Pipeline, with "size".
        valid_every: N to use every Nth training pair after cleaning for validation; 0 if there is a valid split.
        expected: number of pairs of each split after cleaning, where known.
    """

    dataset: str
    source_lang: str
    target_lang: str
    splits: dict[str, tuple[Corpus, ...]]
    generator: str | None
    exclude_held_out: bool
    cleaning: dict[str, Any] | None
    tokenizer: dict[str, Any]
    subword: dict[str, Any]
    valid_every: int = 0
    expected: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for side, lang in self.languages.items():
            if not re.fullmatch(r"[A-Za-z0-9_]+", lang):
                raise SharingError(f"--{side}-lang must consist of letters, digits and _, such as en, got {lang!r}")
        if self.source_lang == self.target_lang:
            raise SharingError(f"--source-lang and --target-lang must differ, got {self.source_lang!r} twice")
        for name in ("train",) if self.valid_every else ("train", "valid"):
            if name not in self.splits:
                raise SharingError(f"dataset {self.dataset}: no {name} split; required: train and valid")
        if self.valid_every:
            check_at_least(f"dataset {self.dataset}: valid_every", self.valid_every, 2)
            if "valid" in self.splits or self.exclude_held_out:
                raise SharingError(
                    f"dataset {self.dataset}: valid_every {self.valid_every}; allowed: without a valid split and "
                    "without exclude_held_out"
                )
        counts = self.expected.items() if isinstance(self.expected, dict) else [("expected", self.expected)]
        for name, count in counts:
            check_choice(f"dataset {self.dataset}: split of expected", name, ("train", "valid", *self.tests))
            check_at_least(f"dataset {self.dataset}: expected pairs of {name}", count, 1)
        for name, corpora in self.splits.items():
            if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
                raise SharingError(f"a test set's name must consist of letters, digits, '_', '-' and '.', got {name!r}")
            for corpus in corpora:
                self._check_corpus(name, corpus)
        if self.generator == "toy" and not {"en", "de"}.issuperset(self.languages.values()):
            raise SharingError(
                f"--source-lang and --target-lang of dataset {self.dataset} must be en or de, "
                f"got {' and '.join(self.languages.values())}"
            )
        if self.generator not in (None, "toy"):
            raise SharingError(f"dataset {self.dataset}: generator must be toy, got {self.generator!r}")
        check_choice("--tokenizer", self.tokenizer["name"], TOKENIZERS)
        check_subword(self.subword)
        if self.cleaning is not None:
            check_cleaning(self.cleaning)

    def _check_corpus(self, name: str, corpus: Corpus) -> None:
        if self.generator or corpus.lines is not None:
            check_at_least(f"dataset {self.dataset}: lines of {name}", corpus.lines, 1)
        if self.generator:
            return
        for lang in () if corpus.sacrebleu else self.languages.values():
            if lang not in corpus.texts:
                allowed = ", ".join(sorted(corpus.texts))
                raise SharingError(f"dataset {self.dataset}: {name} has no text in {lang}; allowed: {allowed}")
            source = corpus.texts[lang]
            if source.markup:
                check_choice(f"dataset {self.dataset}: markup of {name}.{lang}", source.markup, MARKUPS)
            known = source.sha256 == UNKNOWN or re.fullmatch("[0-9a-f]{64}", source.sha256)
            if [bool(source.path), bool(source.url), bool(source.file)].count(True) != 1 or not (source.path or known):
                raise SharingError(
                    f"dataset {self.dataset}: {name}.{lang} requires a path, or a url or file and its sha256 "
                    f"(64 digits, or {UNKNOWN})"
                )

    @property
    def languages(self) -> dict[str, str]:
        """Language code per side; a dataset for language models has only a source."""
        sides = {"source": self.source_lang, "target": self.target_lang}
        return {side: lang for side, lang in sides.items() if lang or side == "source"}

    @property
    def tests(self) -> list[str]:
        """Names of the test sets."""
        return [name for name in self.splits if name not in ("train", "valid")]


def recipe_names() -> list[str]:
    """List the datasets with a recipe.

    Returns:
        Their names, sorted.
    """
    return sorted(path.parent.name for path in recipes_dir().glob("*/recipe.yaml"))


def load_recipe(dataset: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe and apply the settings given on the command line.

    Args:
        dataset: name of a dataset, or the path of a recipe.yaml.
        overrides: see `build_recipe`.

    Returns:
        The resolved recipe.

    Raises:
        SharingError: an unknown dataset or an invalid setting.
    """
    path = Path(dataset) if dataset.endswith((".yaml", ".yml")) else recipes_dir() / dataset / "recipe.yaml"
    if not path.is_file():
        raise SharingError(
            f"DATASET must be one of {', '.join(recipe_names())}, files, or a recipe.yaml, got {dataset!r}"
        )
    return build_recipe(path.resolve().parent.name, read_yaml(path), overrides, path)


def files_recipe(
    train: str | None, valid: str | None, tests: list[str], overrides: Mapping[str, Any] | None = None
) -> Recipe:
    """Make a recipe for the user's own texts.

    Args:
        train: prefix of the training texts: PREFIX.en and PREFIX.de, or the same with the suffix .gz.
        valid: prefix of the validation texts.
        tests: test sets, each as NAME=PREFIX.
        overrides: see `build_recipe`; source_lang and target_lang are required.

    Returns:
        The resolved recipe.

    Raises:
        SharingError: a flag or file is missing; the message names it.
    """
    overrides = overrides or {}
    needed = {"train": train, "valid": valid, **{key: overrides.get(key) for key in ("source_lang", "target_lang")}}
    for key, value in needed.items():
        if not value:
            raise SharingError(f"{flag_of(key)} is required for dataset 'files'")
    prefixes = {"train": str(train), "valid": str(valid)}
    for test in tests:
        name, separator, prefix = test.partition("=")
        if not separator or not prefix:
            raise SharingError(f"--test must be NAME=PREFIX, got {test!r}")
        if name in prefixes:
            raise SharingError(f"--test {test}: the name {name!r} is already in use; allowed: another name")
        prefixes[name] = prefix
    languages = (overrides["source_lang"], overrides["target_lang"])
    splits = {name: {lang: {"path": _find(prefix, lang)} for lang in languages} for name, prefix in prefixes.items()}
    return build_recipe("files", {"source_lang": "", "target_lang": "", "splits": splits}, overrides)


def build_recipe(
    dataset: str, content: Mapping[str, Any], overrides: Mapping[str, Any] | None = None, path: Path | None = None
) -> Recipe:
    """Check the content of a recipe and fill in the defaults.

    Args:
        dataset: name of the dataset.
        content: mapping in the format shown at the top of this module.
        overrides: source_lang, target_lang, tokenizer, subword, subword_size, the keys of SENTENCEPIECE and of
            CLEANING; None values are ignored.
        path: the recipe's file; local paths in it are relative to its folder.

    Returns:
        The resolved recipe.

    Raises:
        SharingError: an invalid value; the message names the key or flag, its value and the allowed values.
    """
    given: dict[str, Any] = {key: value for key, value in (overrides or {}).items() if value is not None}
    where = str(path or f"dataset {dataset}")
    if (
        not isinstance(content, Mapping)
        or set(content) - {*_NEEDED, *_OPTIONAL}
        or set(_NEEDED) - set(content)
        or not isinstance(content["splits"], Mapping)
    ):
        raise SharingError(f"{where}: not a recipe; required: {', '.join(_NEEDED)}; optional: {', '.join(_OPTIONAL)}")
    subword = read_subword(where, content, given, path)
    return Recipe(
        dataset=dataset,
        source_lang=str(given.get("source_lang", content["source_lang"])),
        target_lang=str(given.get("target_lang", content.get("target_lang", ""))),
        splits={name: _corpora(f"{where}: {name}", split, path) for name, split in content["splits"].items()},
        generator=content.get("generator"),
        exclude_held_out=bool(content.get("exclude_held_out", False)),
        valid_every=content.get("valid_every", 0),
        expected=content.get("expected", {}),
        cleaning=read_cleaning(where, content, given),
        tokenizer=read_tokenizer(where, content, given, subword["name"]),
        subword=subword,
    )


def _corpora(where: str, content: Any, path: Path | None) -> tuple[Corpus, ...]:
    corpora = content if isinstance(content, list) else [content]
    if not corpora:
        raise SharingError(f"{where}: empty list; allowed: at least one corpus")
    return tuple(_corpus(where, corpus, path) for corpus in corpora)


def _corpus(where: str, content: Any, path: Path | None) -> Corpus:
    try:
        texts = {lang: Source(**text) for lang, text in content.items() if lang not in ("lines", "sacrebleu")}
        if not isinstance(content.get("sacrebleu", ""), str):
            raise TypeError("not a name")
    except (TypeError, AttributeError):
        raise SharingError(
            f"{where}: expected lines: N, and sacrebleu: NAME or LANG: {{url: ..., sha256: ...}}, "
            "{file: ..., sha256: ...} or {path: ...}, these with member: ... for an archive, and markup: ..."
        ) from None
    if path is not None:
        local = {lang: source for lang, source in texts.items() if source.path}
        texts |= {lang: replace(source, path=str(path.parent / source.path)) for lang, source in local.items()}
    return Corpus(texts, content.get("lines"), content.get("sacrebleu", ""))


def _find(prefix: str, lang: str) -> str:
    plain = f"{prefix}.{lang}"
    for path in (plain, plain + ".gz"):
        if Path(path).is_file():
            return path
    raise SharingError(f"{plain}: neither this file nor {plain}.gz exists")
