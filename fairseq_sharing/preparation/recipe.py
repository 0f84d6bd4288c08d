"""Recipes: where the texts of a dataset come from and how they are treated.

A recipe is a YAML file, ``data-prep/<dataset>/recipe.yaml``::

    source_lang: en
    target_lang: de               # left out: texts of one language, for a language model
    splits:                       # train, valid, and any number of test sets by their own names
      train:                      # one corpus, or a list of them that are read one after the other
        - lines: 29000            # optional; checked
          en: {url: https://..., sha256: ..., member: a/b.en}     # member: file inside a .tgz, .tar or .zip
          de: {url: https://..., sha256: unknown}                 # recorded when it is first downloaded
        - en: {file: text.en.gz, sha256: ...}                     # has no URL: needs --mirror
          de: {path: text.de}                                     # local; ".gz" is decompressed
      valid: {lines: 3000, sacrebleu: wmt13}                      # a test set that sacreBLEU knows
    generator: toy                # instead of all these: the texts are made by this project
    exclude_held_out: false       # leave out training pairs whose source is in another split
    cleaning: {min_tokens: 1, max_tokens: 250, max_ratio: 1.5, max_word_length: 1000}     # or none
    tokenizer: {name: moses, aggressive_dashes: false, escape: false}
    subword: {name: bpe, size: 10000}           # or {name: bpe, codes: FILE}: merges learned elsewhere
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from fairseq_sharing.errors import SharingError
from fairseq_sharing.options import flag_of
from fairseq_sharing.preparation.fetch import UNKNOWN
from fairseq_sharing.preparation.text import SUBWORDS, TOKENIZERS
from fairseq_sharing.resources import recipes_dir

CLEANING = {"min_tokens": 1, "max_tokens": 250, "max_ratio": 1.5, "max_word_length": 1000}
"""Defaults of Moses' clean-corpus-n.perl, with the length ratio that fairseq's translation examples use."""

DEFAULT_SUBWORD_SIZE = 10_000

_NEEDED = ("source_lang", "splits")
_OPTIONAL = ("target_lang", "generator", "exclude_held_out", "cleaning", "tokenizer", "subword")


@dataclass(frozen=True)
class Source:
    """One text: a file by URL, by the name it has in a mirror, or by local path; ``member`` is inside that archive.

    ``sha256`` is that of the file, UNKNOWN when it is to be recorded on first download.
    """

    url: str = ""
    file: str = ""
    sha256: str = ""
    path: str = ""
    member: str = ""

    def __post_init__(self) -> None:
        if not all(isinstance(value, str) for value in vars(self).values()):
            raise TypeError("not all text")

    @property
    def location(self) -> str:
        """What is fetched; empty for a local file."""
        return self.url or self.file


@dataclass(frozen=True)
class Corpus:
    """Parallel texts, or one text; ``lines`` is the number each must have, when known.

    ``sacrebleu`` names the test set that sacreBLEU fetches, instead of texts. Of a generated corpus there is neither.
    """

    texts: dict[str, Source]
    lines: int | None = None
    sacrebleu: str = ""


@dataclass(frozen=True)
class Recipe:
    """All that decides what a prepared data directory holds.

    Attributes:
        dataset: name of the dataset.
        source_lang: language code translated from.
        target_lang: language code translated to; empty for texts of one language.
        splits: the corpora of train, valid and the test sets, by name, test sets in the order they are reported in.
        generator: name of the generator of the texts, None for texts from files.
        exclude_held_out: leave out training pairs whose source sentence is in another split.
        cleaning: limits that training pairs must keep; None keeps all.
        tokenizer: settings of text.Pipeline.
        subword: settings of text.Pipeline, with "size".
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

    def __post_init__(self) -> None:
        for side, lang in self.languages.items():
            if not re.fullmatch(r"[A-Za-z0-9_]+", lang):
                raise SharingError(f"--{side}-lang must be letters, digits and _, such as en, got {lang!r}")
        if self.source_lang == self.target_lang:
            raise SharingError(f"--source-lang and --target-lang must differ, got {self.source_lang!r} twice")
        for name in ("train", "valid"):
            if name not in self.splits:
                raise SharingError(f"dataset {self.dataset}: no {name} split")
        for name, corpora in self.splits.items():
            if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
                raise SharingError(f"a test set's name must be letters, digits, '_', '-' and '.', got {name!r}")
            for corpus in corpora:
                self._check_corpus(name, corpus)
        if self.generator == "toy" and not {"en", "de"}.issuperset(self.languages.values()):
            raise SharingError(
                f"--source-lang and --target-lang of dataset {self.dataset} must be en or de, "
                f"got {' and '.join(self.languages.values())}"
            )
        if self.generator not in (None, "toy"):
            raise SharingError(f"dataset {self.dataset}: generator must be toy, got {self.generator!r}")
        _choice("--tokenizer", self.tokenizer["name"], TOKENIZERS)
        _choice("--subword", self.subword["name"], SUBWORDS)
        if "size" in self.subword:
            _at_least("--subword-size", self.subword["size"], 1)
        if self.cleaning is not None:
            _at_least("--min-tokens", self.cleaning["min_tokens"], 1)
            _at_least("--max-tokens", self.cleaning["max_tokens"], self.cleaning["min_tokens"])
            _at_least("--max-ratio", self.cleaning["max_ratio"], 1, float)
            _at_least("--max-word-length", self.cleaning["max_word_length"], 1)

    def _check_corpus(self, name: str, corpus: Corpus) -> None:
        if self.generator or corpus.lines is not None:
            _at_least(f"dataset {self.dataset}: lines of {name}", corpus.lines, 1)
        if self.generator:
            return
        for lang in () if corpus.sacrebleu else self.languages.values():
            if lang not in corpus.texts:
                allowed = ", ".join(sorted(corpus.texts))
                raise SharingError(f"dataset {self.dataset}: {name} is in {allowed}, not in {lang}")
            source = corpus.texts[lang]
            known = source.sha256 == UNKNOWN or re.fullmatch("[0-9a-f]{64}", source.sha256)
            if [bool(source.path), bool(source.url), bool(source.file)].count(True) != 1 or not (source.path or known):
                raise SharingError(
                    f"dataset {self.dataset}: {name}.{lang} needs a path, or a url or file and its sha256 "
                    f"(64 digits, or {UNKNOWN})"
                )

    @property
    def languages(self) -> dict[str, str]:
        """Language code by side; a dataset for language models has only a source."""
        sides = {"source": self.source_lang, "target": self.target_lang}
        return {side: lang for side, lang in sides.items() if lang or side == "source"}

    @property
    def tests(self) -> list[str]:
        """Names of the test sets."""
        return [name for name in self.splits if name not in ("train", "valid")]

    def as_dict(self) -> dict[str, Any]:
        """Give the recipe in the form it is kept in the manifest."""
        return asdict(self)


def recipe_names() -> list[str]:
    """List the datasets that have a recipe.

    Returns:
        Their names, in order.
    """
    return sorted(path.parent.name for path in recipes_dir().glob("*/recipe.yaml"))


def load_recipe(dataset: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe and apply the settings given on the command line.

    Args:
        dataset: name of a dataset, or the path of a recipe.yaml.
        overrides: as for build_recipe.

    Returns:
        The resolved recipe.

    Raises:
        SharingError: for an unknown dataset or a bad setting.
    """
    path = Path(dataset) if dataset.endswith((".yaml", ".yml")) else recipes_dir() / dataset / "recipe.yaml"
    if not path.is_file():
        raise SharingError(
            f"DATASET must be one of {', '.join(recipe_names())}, files, or a recipe.yaml, got {dataset!r}"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SharingError(f"{path}: not YAML ({str(error).splitlines()[0]})") from None
    return build_recipe(path.resolve().parent.name, content, overrides, path)


def files_recipe(
    train: str | None, valid: str | None, tests: list[str], overrides: Mapping[str, Any] | None = None
) -> Recipe:
    """Make a recipe for texts of the user's own.

    Args:
        train: prefix of the training texts: PREFIX.en and PREFIX.de, or the same with .gz after it.
        valid: prefix of the validation texts.
        tests: test sets, each as NAME=PREFIX.
        overrides: as for build_recipe; source_lang and target_lang are required.

    Returns:
        The resolved recipe.

    Raises:
        SharingError: naming the flag or file that is missing.
    """
    overrides = overrides or {}
    needed = {"train": train, "valid": valid, **{key: overrides.get(key) for key in ("source_lang", "target_lang")}}
    for key, value in needed.items():
        if not value:
            raise SharingError(f"{flag_of(key)} is needed for dataset 'files'")
    prefixes = {"train": str(train), "valid": str(valid)}
    for test in tests:
        name, separator, prefix = test.partition("=")
        if not separator or not prefix:
            raise SharingError(f"--test must be NAME=PREFIX, got {test!r}")
        if name in prefixes:
            raise SharingError(f"--test {test}: there is a {name!r} already")
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
        content: mapping in the form shown at the top of this module.
        overrides: source_lang, target_lang, tokenizer, subword, subword_size and the keys of CLEANING; None
            means not given.
        path: the recipe's file; local paths in it are relative to its folder.

    Returns:
        The resolved recipe.

    Raises:
        SharingError: naming the key or flag, its value and what is allowed.
    """
    given: dict[str, Any] = {key: value for key, value in (overrides or {}).items() if value is not None}
    where = str(path or f"dataset {dataset}")
    if (
        not isinstance(content, Mapping)
        or set(content) - {*_NEEDED, *_OPTIONAL}
        or set(_NEEDED) - set(content)
        or not isinstance(content["splits"], Mapping)
    ):
        raise SharingError(f"{where}: a recipe has {', '.join(_NEEDED)}, and may have {', '.join(_OPTIONAL)}")
    subword = _subword(where, content, given, path)
    return Recipe(
        dataset=dataset,
        source_lang=str(given.get("source_lang", content["source_lang"])),
        target_lang=str(given.get("target_lang", content.get("target_lang", ""))),
        splits={name: _corpora(f"{where}: {name}", split, path) for name, split in content["splits"].items()},
        generator=content.get("generator"),
        exclude_held_out=bool(content.get("exclude_held_out", False)),
        cleaning=_cleaning(where, content, given),
        tokenizer=_tokenizer(where, content, given, subword["name"]),
        subword=subword,
    )


def _cleaning(where: str, content: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any] | None:
    cleaning = content.get("cleaning", {})
    if cleaning == "none":
        if flags := [flag_of(key) for key in CLEANING if key in given]:
            raise SharingError(f"{flags[0]} has no meaning for {where}, which keeps every line")
        return None
    if not isinstance(cleaning, Mapping) or set(cleaning) - set(CLEANING):
        raise SharingError(f"{where}: cleaning must be none, or have some of {', '.join(CLEANING)}, got {cleaning}")
    return {key: given.get(key, cleaning.get(key, default)) for key, default in CLEANING.items()}


def _subword(where: str, content: Mapping[str, Any], given: Mapping[str, Any], path: Path | None) -> dict[str, Any]:
    subword = content.get("subword", {})
    if not isinstance(subword, Mapping) or set(subword) - {"name", "size", "codes"}:
        raise SharingError(f"{where}: subword may have name, and size or codes, got {subword}")
    name, size = given.get("subword", subword.get("name", "bpe")), given.get("subword_size")
    ready = name == "bpe" and size is None and subword.get("codes")
    if ready:
        return {"name": name, "codes": str((path.parent if path else Path()) / ready)}
    if name != "none":
        return {"name": name, "size": subword.get("size", DEFAULT_SUBWORD_SIZE) if size is None else size}
    if size is not None:
        raise SharingError(f"--subword-size has no meaning with --subword none, got {size}")
    return {"name": "none"}


def _tokenizer(where: str, content: Mapping[str, Any], given: Mapping[str, Any], subword: str) -> dict[str, Any]:
    if not isinstance(content.get("tokenizer", {}), Mapping):
        raise SharingError(f"{where}: tokenizer may have name and its settings, got {content['tokenizer']}")
    tokenizer = dict(content.get("tokenizer", {}))
    if "tokenizer" in given:
        tokenizer["name"] = given["tokenizer"]
    elif "name" not in tokenizer:
        # Sentencepiece learns from plain text, spaces included; tokenizing would hide them from it.
        tokenizer["name"] = "none" if subword == "sentencepiece" else "moses"
    if tokenizer["name"] == "moses":
        return {"aggressive_dashes": False, "escape": False, **tokenizer}
    return {"name": tokenizer["name"]}


def _corpora(where: str, content: Any, path: Path | None) -> tuple[Corpus, ...]:
    corpora = content if isinstance(content, list) else [content]
    if not corpora:
        raise SharingError(f"{where}: no corpus")
    return tuple(_corpus(where, corpus, path) for corpus in corpora)


def _corpus(where: str, content: Any, path: Path | None) -> Corpus:
    try:
        texts = {lang: Source(**text) for lang, text in content.items() if lang not in ("lines", "sacrebleu")}
        if not isinstance(content.get("sacrebleu", ""), str):
            raise TypeError("not a name")
    except (TypeError, AttributeError):
        raise SharingError(
            f"{where}: expected lines: N, and sacrebleu: NAME or LANG: {{url: ..., sha256: ...}}, "
            "{file: ..., sha256: ...} or {path: ...}, these with member: ... for an archive"
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
    raise SharingError(f"{plain}: no such file, nor {plain}.gz")


def _choice(flag: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SharingError(f"{flag} must be one of {', '.join(allowed)}, got {value!r}")


def _at_least(flag: str, value: object, least: float, kind: type[int] | type[float] = int) -> None:
    kinds = (int,) if kind is int else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) or not least <= value < math.inf:
        allowed = "whole numbers" if kind is int else "finite numbers"
        raise SharingError(f"{flag} must be at least {least}, got {value}; allowed: {allowed}")
