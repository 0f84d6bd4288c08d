"""Recipes: where the texts of a dataset come from and how they are treated.

A recipe is a YAML file, ``data-prep/<dataset>/recipe.yaml``::

    source_lang: en
    target_lang: de
    splits:                       # train, valid, and any number of test sets by their own names
      train:
        lines: 29000              # optional; checked
        en: {url: https://..., sha256: ...}     # or {path: ...}; ".gz" is decompressed
        de: {url: https://..., sha256: ...}
      valid: ...
    generator: toy                # instead of url or path: the texts are made by this project
    cleaning: {min_tokens: 1, max_tokens: 250, max_ratio: 1.5, max_word_length: 1000}
    tokenizer: {name: moses, aggressive_dashes: false, escape: false}
    subword: {name: bpe, size: 10000}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from fairseq_sharing.errors import SharingError
from fairseq_sharing.preparation.text import SUBWORDS, TOKENIZERS
from fairseq_sharing.resources import recipes_dir

CLEANING = {"min_tokens": 1, "max_tokens": 250, "max_ratio": 1.5, "max_word_length": 1000}
"""Defaults of Moses' clean-corpus-n.perl, with the length ratio that fairseq's translation examples use."""

DEFAULT_SUBWORD_SIZE = 10_000


_KEYS = ("source_lang", "target_lang", "splits", "generator", "cleaning", "tokenizer", "subword")


@dataclass(frozen=True)
class Source:
    """One text file: a URL with its SHA-256, or a local path; of a generated text neither."""

    url: str = ""
    sha256: str = ""
    path: str = ""


@dataclass(frozen=True)
class Split:
    """A pair of parallel texts; ``lines`` is the number each must have, when known."""

    texts: dict[str, Source]
    lines: int | None = None


@dataclass(frozen=True)
class Recipe:
    """All that decides what a prepared data directory holds.

    Attributes:
        dataset: name of the dataset.
        source_lang: language code translated from.
        target_lang: language code translated to.
        splits: train, valid and the test sets, by name, test sets in the order they are reported in.
        generator: name of the generator of the texts, None for texts from files.
        cleaning: limits that training pairs must keep.
        tokenizer: settings of text.Pipeline.
        subword: settings of text.Pipeline, with "size".
    """

    dataset: str
    source_lang: str
    target_lang: str
    splits: dict[str, Split]
    generator: str | None
    cleaning: dict[str, Any]
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
        for name, split in self.splits.items():
            self._check_split(name, split)
        if self.generator not in (None, "toy"):
            raise SharingError(f"dataset {self.dataset}: generator must be toy, got {self.generator!r}")
        _choice("--tokenizer", self.tokenizer["name"], TOKENIZERS)
        _choice("--subword", self.subword["name"], SUBWORDS)
        if self.subword["name"] != "none":
            _at_least("--subword-size", self.subword["size"], 1)
        _at_least("--min-tokens", self.cleaning["min_tokens"], 1)
        _at_least("--max-tokens", self.cleaning["max_tokens"], self.cleaning["min_tokens"])
        _at_least("--max-ratio", self.cleaning["max_ratio"], 1)
        _at_least("--max-word-length", self.cleaning["max_word_length"], 1)

    def _check_split(self, name: str, split: Split) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise SharingError(f"a test set's name must be letters, digits, '_', '-' and '.', got {name!r}")
        if self.generator:
            _at_least(f"dataset {self.dataset}: lines of {name}", split.lines, 1)
            return
        for lang in self.languages.values():
            if lang not in split.texts:
                allowed = ", ".join(sorted(split.texts))
                raise SharingError(f"dataset {self.dataset}: {name} is in {allowed}, not in {lang}")
            source = split.texts[lang]
            if not source.path and not (source.url and re.fullmatch("[0-9a-f]{64}", source.sha256)):
                raise SharingError(f"dataset {self.dataset}: {name}.{lang} needs a path, or a url and its sha256")

    @property
    def languages(self) -> dict[str, str]:
        """Language code by side."""
        return {"source": self.source_lang, "target": self.target_lang}

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
            raise SharingError(f"--{key.replace('_', '-')} is needed for dataset 'files'")
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
    where = path or f"dataset {dataset}"
    if not isinstance(content, Mapping) or set(content) - set(_KEYS) or set(_KEYS[:3]) - set(content):
        raise SharingError(f"{where}: a recipe has {', '.join(_KEYS[:3])}, and may have {', '.join(_KEYS[3:])}")
    cleaning = {**CLEANING, **content.get("cleaning", {})}
    if unknown := set(cleaning) - set(CLEANING):
        raise SharingError(f"{where}: cleaning may have {', '.join(CLEANING)}, got {', '.join(sorted(unknown))}")
    subword = _subword(content, given)
    return Recipe(
        dataset=dataset,
        source_lang=str(given.get("source_lang", content["source_lang"])),
        target_lang=str(given.get("target_lang", content["target_lang"])),
        splits={name: _split(f"{where}: {name}", split, path) for name, split in content["splits"].items()},
        generator=content.get("generator"),
        cleaning={key: given.get(key, value) for key, value in cleaning.items()},
        tokenizer=_tokenizer(content, given, subword["name"]),
        subword=subword,
    )


def _subword(content: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    subword = {"name": "bpe", "size": DEFAULT_SUBWORD_SIZE, **content.get("subword", {})}
    subword["name"] = given.get("subword", subword["name"])
    if subword["name"] != "none":
        return {**subword, "size": given.get("subword_size", subword["size"])}
    if "subword_size" in given:
        raise SharingError(f"--subword-size has no meaning with --subword none, got {given['subword_size']}")
    return {"name": "none"}


def _tokenizer(content: Mapping[str, Any], given: Mapping[str, Any], subword: str) -> dict[str, Any]:
    tokenizer = dict(content.get("tokenizer", {}))
    if "tokenizer" in given:
        tokenizer["name"] = given["tokenizer"]
    elif "name" not in tokenizer:
        # Sentencepiece learns from plain text, spaces included; tokenising would hide them from it.
        tokenizer["name"] = "none" if subword == "sentencepiece" else "moses"
    if tokenizer["name"] == "moses":
        return {"aggressive_dashes": False, "escape": False, **tokenizer}
    return {"name": tokenizer["name"]}


def _split(where: str, content: Any, path: Path | None) -> Split:
    try:
        texts = {lang: Source(**source) for lang, source in content.items() if lang != "lines"}
    except (TypeError, AttributeError):
        raise SharingError(
            f"{where}: expected lines: N, and LANG: {{url: ..., sha256: ...}} or {{path: ...}}"
        ) from None
    if path is not None:
        local = {lang: source for lang, source in texts.items() if source.path}
        texts |= {lang: replace(source, path=str(path.parent / source.path)) for lang, source in local.items()}
    return Split(texts, content.get("lines"))


def _find(prefix: str, lang: str) -> str:
    plain = f"{prefix}.{lang}"
    for path in (plain, plain + ".gz"):
        if Path(path).is_file():
            return path
    raise SharingError(f"{plain}: no such file, nor {plain}.gz")


def _choice(flag: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SharingError(f"{flag} must be one of {', '.join(allowed)}, got {value!r}")


def _at_least(flag: str, value: object, least: float) -> None:
    if not isinstance(value, (int, float)) or value < least:
        raise SharingError(f"{flag} must be at least {least}, got {value}")
