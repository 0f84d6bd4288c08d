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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fairseq_sharing.errors import SharingError
from fairseq_sharing.preparation.text import SUBWORDS, TOKENIZERS

_PACKAGE = Path(__file__).resolve().parents[1]

CLEANING = {"min_tokens": 1, "max_tokens": 250, "max_ratio": 1.5, "max_word_length": 1000}
"""Defaults of Moses' clean-corpus-n.perl, with the length ratio that fairseq's translation examples use."""

DEFAULT_SUBWORD_SIZE = 10_000


@dataclass(frozen=True)
class Source:
    """One text file: a URL with its SHA-256, a local path, or neither when the text is generated."""

    url: str | None = None
    sha256: str | None = None
    path: str | None = None


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
    generator: str | None = None
    cleaning: dict[str, Any] = field(default_factory=lambda: dict(CLEANING))
    tokenizer: dict[str, Any] = field(default_factory=dict)
    subword: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for lang in (self.source_lang, self.target_lang):
            if not re.fullmatch(r"[A-Za-z0-9_]+", lang):
                raise SharingError(f"language code {lang!r}: letters, digits and _ only, such as en")
        if self.source_lang == self.target_lang:
            raise SharingError(
                f"--source-lang and --target-lang are both {self.source_lang!r}; they must differ"
            )
        for name in ("train", "valid"):
            if name not in self.splits:
                raise SharingError(f"dataset {self.dataset}: no {name} split")
        for name, split in self.splits.items():
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
                raise SharingError(f"test set name {name!r}: letters, digits, '_', '-' and '.' only")
            for lang in (self.source_lang, self.target_lang):
                if self.generator is None and lang not in split.texts:
                    allowed = ", ".join(sorted(split.texts))
                    raise SharingError(
                        f"dataset {self.dataset} has no language {lang!r} in {name}; it has {allowed}"
                    )
        _choice("--tokenizer", self.tokenizer.get("name"), TOKENIZERS)
        _choice("--subword", self.subword.get("name"), SUBWORDS)
        if self.subword["name"] != "none" and self.subword["size"] < 1:
            raise SharingError(f"--subword-size must be at least 1, got {self.subword['size']}")
        unknown = set(self.cleaning) - set(CLEANING)
        if unknown:
            raise SharingError(
                f"cleaning: unknown {', '.join(sorted(unknown))}; allowed: {', '.join(CLEANING)}"
            )

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


def recipe_folder() -> Path:
    """Find the recipes: inside the installed package, or in the clone it runs from.

    Returns:
        A folder with one folder a dataset.
    """
    installed, clone = _PACKAGE / "recipes", _PACKAGE.parent / "data-prep"
    return installed if installed.is_dir() else clone


def recipe_names() -> list[str]:
    """List the datasets that have a recipe.

    Returns:
        Their names, in order.
    """
    return sorted(path.parent.name for path in recipe_folder().glob("*/recipe.yaml"))


def load_recipe(dataset: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe and apply the settings given on the command line.

    Args:
        dataset: name of a dataset, or the path of a recipe.yaml.
        overrides: values for the keys of build_recipe; None means not given.

    Returns:
        The resolved recipe.

    Raises:
        SharingError: for an unknown dataset or a bad setting.
    """
    if dataset.endswith((".yaml", ".yml")):
        path, name = Path(dataset), Path(dataset).resolve().parent.name
    else:
        path, name = recipe_folder() / dataset / "recipe.yaml", dataset
    if not path.is_file():
        raise SharingError(
            f"dataset {dataset!r}: no such recipe; allowed: {', '.join([*recipe_names(), 'files'])}"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise SharingError(f"{path}: not YAML ({str(error).splitlines()[0]})") from None
    return build_recipe(name, content, overrides, where=path)


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
    overrides = dict(overrides or {})
    required = {"--train": train, "--valid": valid}
    required |= {f"--{side}-lang": overrides.get(f"{side}_lang") for side in ("source", "target")}
    for flag, value in required.items():
        if not value:
            raise SharingError(f"dataset 'files' needs {flag}")
    prefixes = {"train": train, "valid": valid}
    for test in tests:
        name, separator, prefix = test.partition("=")
        if not separator or not prefix:
            raise SharingError(f"--test {test}: expected NAME=PREFIX")
        if name in prefixes:
            raise SharingError(f"--test {test}: the name {name!r} is taken")
        prefixes[name] = prefix
    languages = (overrides["source_lang"], overrides["target_lang"])
    splits = {
        name: {lang: {"path": _find(prefix, lang)} for lang in languages} for name, prefix in prefixes.items()
    }
    content = {"source_lang": languages[0], "target_lang": languages[1], "splits": splits}
    return build_recipe("files", content, overrides)


def build_recipe(
    dataset: str,
    content: Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    where: Path | str = "recipe",
) -> Recipe:
    """Check the content of a recipe and fill in the defaults.

    Args:
        dataset: name of the dataset.
        content: mapping in the form shown at the top of this module.
        overrides: source_lang, target_lang, tokenizer, subword, subword_size and the keys of CLEANING; None
            means not given.
        where: name of the recipe in messages.

    Returns:
        The resolved recipe.

    Raises:
        SharingError: naming the key or flag, its value and what is allowed.
    """
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    allowed = {"source_lang", "target_lang", "splits", "generator", "cleaning", "tokenizer", "subword"}
    if not isinstance(content, Mapping) or set(content) - allowed or "splits" not in content:
        raise SharingError(f"{where}: a recipe has the keys {', '.join(sorted(allowed))}")
    subword = {"name": "bpe", "size": DEFAULT_SUBWORD_SIZE, **content.get("subword", {})}
    subword["name"] = given.get("subword", subword["name"])
    subword["size"] = given.get("subword_size", subword["size"])
    if subword["name"] == "none":
        del subword["size"]
    # Sentencepiece learns from raw text, spaces included; tokenising first would hide them from it.
    default = "none" if subword["name"] == "sentencepiece" else "moses"
    tokenizer = dict(content.get("tokenizer") or {})
    tokenizer["name"] = given.get("tokenizer") or (
        default if "subword" in given else tokenizer.get("name", default)
    )
    if tokenizer["name"] == "moses":
        tokenizer = {"aggressive_dashes": False, "escape": False, **tokenizer}
    else:
        tokenizer = {"name": tokenizer["name"]}
    return Recipe(
        dataset=dataset,
        source_lang=given.get("source_lang", content["source_lang"]),
        target_lang=given.get("target_lang", content["target_lang"]),
        splits={name: _split(name, texts, where) for name, texts in content["splits"].items()},
        generator=content.get("generator"),
        cleaning={**CLEANING, **content.get("cleaning", {}), **{k: given[k] for k in CLEANING if k in given}},
        tokenizer=tokenizer,
        subword=subword,
    )


def _find(prefix: str | None, lang: str) -> str:
    plain = f"{prefix}.{lang}"
    for path in (plain, plain + ".gz"):
        if Path(path).is_file():
            return path
    raise SharingError(f"{plain}: no such file, nor {plain}.gz")


def _split(name: str, content: Mapping[str, Any] | None, where: Path | str) -> Split:
    content = dict(content or {})
    lines = content.pop("lines", None)
    try:
        return Split({lang: Source(**source) for lang, source in content.items()}, lines)
    except TypeError:
        raise SharingError(f"{where}: {name}: a text is {{url: ..., sha256: ...}} or {{path: ...}}") from None


def _choice(flag: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SharingError(f"{flag} must be one of {', '.join(allowed)}, got {value!r}")
