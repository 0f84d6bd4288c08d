"""Run all steps from a recipe to a data directory; finished steps are skipped."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.command_line import refuse_separator
from fairseq_sharing.experiment.environment import cpu_cores
from fairseq_sharing.files import atomic_write, inside, sha256
from fairseq_sharing.preparation import subwords, toy
from fairseq_sharing.preparation.binarize import (
    data_names,
    dictionary_names,
    preprocess_arguments,
    subset_names,
    write_dictionary,
)
from fairseq_sharing.preparation.binarize_text import binarize_text
from fairseq_sharing.preparation.clean import REASONS
from fairseq_sharing.preparation.parallel import Workers
from fairseq_sharing.preparation.progress import console
from fairseq_sharing.preparation.recipe import Recipe
from fairseq_sharing.preparation.sources import find_texts, identity, refuse_same_names
from fairseq_sharing.preparation.steps import ResumableSteps, locked
from fairseq_sharing.preparation.stream import ChunkFunction, process_chunks, split_every
from fairseq_sharing.preparation.transform import MAX_SUBWORDS, segment_chunk, tokenize_chunk
from fairseq_sharing.preparation.unpack import unpack
from fairseq_sharing.preparation.unspaced import removal_hint, subword_warning
from fairseq_sharing.terminal import say

PACKAGES = ("fairseq-sharing", "fairseq-fixed", "sacremoses", "subword-nmt", "tokenizers", "sentencepiece")


def prepare(recipe: Recipe, directory: Path, mirror: str | None = None, workers: int | None = None) -> dict[str, Any]:
    """Create or update a data directory.

    Args:
        recipe: the recipe of the dataset.
        directory: the output directory.
        mirror: local folder, file:// or http(s):// URL with the files of the recipe's URLs.
        workers: number of processes; None for one per CPU.

    Returns:
        The manifest.

    Raises:
        SharingError: an invalid text or flag; the message names the file and line, or the flag.
    """
    if workers is None:
        workers = cpu_cores()
    if workers < 1:
        raise SharingError(f"--workers must be at least 1, got {workers}")
    refuse_separator(directory.resolve(), "--out")
    with locked(directory), Workers(workers) as pool:
        return _Preparation(recipe, ResumableSteps(directory), pool, mirror).run()


class _Preparation:
    def __init__(self, recipe: Recipe, steps: ResumableSteps, pool: Workers, mirror: str | None):
        self.recipe, self.steps, self.pool, self.mirror = recipe, steps, pool, mirror
        self.directory = steps.directory
        self.languages = list(recipe.languages.values())
        self.versions = {package: _version(package) for package in PACKAGES}
        self.settings = json.dumps(
            {"languages": recipe.languages, "tokenizer": recipe.tokenizer, "subword": recipe.subword}
        )

    def run(self) -> dict[str, Any]:
        """Run all steps and return the manifest."""
        if self.steps.dataset not in (None, self.recipe.dataset):
            raise SharingError(
                f"--out {self.directory}: contains dataset {self.steps.dataset}, not {self.recipe.dataset}; "
                "give another directory"
            )
        if self.mirror is not None:
            refuse_same_names(corpus for corpora in self.recipe.splits.values() for corpus in corpora)
        if warning := subword_warning(self.languages, self.recipe.subword["name"]):
            _warn(warning)
        self.steps.begin()  # files without a checksum are fetched before the first step
        held_out = ["valid", *self.recipe.tests]
        raw = self._generate() if self.recipe.generator else {name: self._unpack(name) for name in self.recipe.splits}
        clean = {name: self._tokenize(name, raw[name]["lines"], held_out) for name in self.recipe.splits}
        if self.recipe.valid_every:
            clean |= self._split(clean["train"])
        lines = {name: clean[name]["lines"] for name in ("train", *held_out)}
        self._report_removed(lines["train"], clean["train"].get("removed", {}))
        model = self._learn(lines["train"])
        for name, number in lines.items():
            self._segment(name, number, model)
        binary = self._binarize(lines)
        manifest = self.steps.finish(self._manifest(raw, clean, binary))
        self._report(manifest)
        self._report_unexpected(lines)
        return manifest

    def _sides(self, folder: str, name: str) -> list[str]:
        return [f"{folder}/{name}.{lang}" for lang in self.languages]

    def _paths(self, files: list[str]) -> list[Path]:
        return [self.directory / file for file in files]

    def _generate(self) -> dict[str, dict[str, Any]]:
        def action() -> dict[str, Any]:
            corpus = toy.generate(sizes)
            for name in sizes:
                for lang, path in zip(self.languages, self._paths(self._sides("raw", name)), strict=True):
                    with atomic_write(path) as file:
                        file.writelines(f"{pair[lang]}\n".encode() for pair in corpus[name])
            return {name: {"lines": len(pairs)} for name, pairs in corpus.items()}

        sizes = {name: corpora[0].lines or 0 for name, corpora in self.recipe.splits.items()}
        settings = {"generator": self.recipe.generator, "grammar": toy.fingerprint(), "lines": sizes}
        files = [file for name in self.recipe.splits for file in self._sides("raw", name)]
        return self.steps.run("raw", settings, {}, files, action)

    def _unpack(self, name: str) -> dict[str, Any]:
        corpora = self.recipe.splits[name]
        lines = [corpus.lines for corpus in corpora]
        where = self.recipe.languages, inside(self.directory, "download"), self.mirror

        def action() -> dict[str, Any]:
            texts = [find_texts(corpus, *where) for corpus in corpora]
            return unpack(name, texts, self._paths(self._sides("raw", name)), lines)

        identities = [identity(corpus, *where) for corpus in corpora]
        inputs = {f"{number} {key}": value for number, one in enumerate(identities) for key, value in one.items()}
        return self.steps.run(f"raw/{name}", {"lines": lines}, inputs, self._sides("raw", name), action)

    def _tokenize(self, name: str, lines: int, held_out: list[str]) -> dict[str, Any]:
        limits = self.recipe.cleaning if name == "train" else None
        exclude = name == "train" and self.recipe.exclude_held_out
        excluded = [self._sides("raw", split)[0] for split in held_out] if exclude else []

        def action() -> dict[str, Any]:
            function = partial(tokenize_chunk, self.settings, limits, tuple(self._paths(excluded)), self.steps.key)
            counts = self._process(f"tokenize {name}", inputs, outputs, lines, function)
            if not limits and not exclude:
                return {"lines": lines, "empty": counts["kept_empty"]}
            removed = {reason: counts[reason] for reason in (*REASONS, *(["held_out"] if exclude else []))}
            return {"lines": lines - sum(removed.values()), "removed": removed}

        settings: dict[str, Any] = {"tokenizer": self.recipe.tokenizer, "cleaning": limits}
        if self.recipe.tokenizer["name"] == "moses":
            settings["sacremoses"] = self.versions["sacremoses"]
        inputs = self._sides("raw", name)
        outputs = self._sides("tok", "train+valid" if name == "train" and self.recipe.valid_every else name)
        return self.steps.run(f"tok/{name}", settings, [*inputs, *excluded], outputs, action)

    def _split(self, clean: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Divide the clean training pairs into training and validation pairs."""

        def action() -> dict[str, Any]:
            for text, *outputs in zip(*map(self._paths, (whole, *parts)), strict=True):
                split_every(text, every, *outputs)
            return {"lines": clean["lines"] - valid, "valid": valid}

        every, whole = self.recipe.valid_every, self._sides("tok", "train+valid")
        valid = clean["lines"] // every
        if not valid:
            raise SharingError(
                f"dataset {self.recipe.dataset}: {clean['lines']} training pairs after cleaning; allowed: at least "
                f"{every} (valid_every)"
            )
        parts = [self._sides("tok", name) for name in ("train", "valid")]
        result = self.steps.run("tok/valid", {"valid_every": every}, whole, [*parts[0], *parts[1]], action)
        train = {"lines": result["lines"], "removed": clean.get("removed", {})}
        return {"train": train, "valid": {"lines": result["valid"], "empty": 0}}

    def _learn(self, lines: int) -> str | None:
        subword = self.recipe.subword
        if subword["name"] == "none":
            return None
        model = subwords.MODEL_FILES[subword["name"]]
        package = subwords.PACKAGES[subword["name"]]
        inputs = self._sides("tok", "train")

        def action() -> dict[str, Any]:
            output = self.directory / model
            if codes:
                return {"learned": subwords.copy_bpe(codes, output)}
            texts, size = self._paths(inputs), subword["size"]
            if subword["name"] == "bpe":
                return {"learned": subwords.learn_bpe(texts, size, output, self.pool)}
            return {"learned": subwords.learn_sentencepiece(texts, subword, output, len(texts) * lines)}

        codes = Path(subword["codes"]) if "codes" in subword else None
        settings = {"subword": subword, package: self.versions[package]}
        self.steps.run("subwords", settings, {"codes": sha256(codes)} if codes else inputs, [model], action)
        return model

    def _segment(self, name: str, lines: int, model: str | None) -> None:
        def action() -> dict[str, Any]:
            path = self.directory / model if model else None
            function = partial(segment_chunk, self.settings, path, self.steps.hashes.get(str(model), ""))
            counts = self._process(f"segment {name}", inputs, outputs, lines, function)
            return {"tokens": counts["tokens"], "over_long": counts["over_long"]}

        inputs, outputs = self._sides("tok", name), self._sides("bpe", name)
        settings = {"subword": self.recipe.subword}
        result = self.steps.run(f"bpe/{name}", settings, [*inputs, *([model] if model else [])], outputs, action)
        if result["over_long"] and name != "train":
            _warn(
                f"{name}: {result['over_long']} pairs have a side longer than {MAX_SUBWORDS} subwords; fairseq fails "
                "on them unless --max-source-positions and --max-target-positions are higher"
            )

    def _binarize(self, lines: dict[str, int]) -> dict[str, Any]:
        """Write the output of fairseq-preprocess, and print the equivalent command."""

        def write() -> dict[str, Any]:
            arguments = preprocess_arguments(self.languages, self.recipe.tests)
            say(console, "equivalent to: fairseq-preprocess " + shlex.join(arguments))
            counts = subwords.count_words("dictionary", self._paths(texts), self.pool)
            return {"dictionary": write_dictionary(counts, self._paths(dictionaries))}

        texts = self._sides("bpe", "train")
        dictionaries = [f"bin/{name}" for name in dictionary_names(self.languages)]
        result = self.steps.run("bin/dictionary", {}, texts, dictionaries, write)
        subsets = {"train": "train", "valid": "valid", **subset_names(self.recipe.tests)}
        for name, number in lines.items():
            for text, data in zip(self._sides("bpe", name), data_names(subsets[name], self.languages), strict=True):
                binarize_text(self.steps, self.pool, text, dictionaries[0], f"bin/{data}", number)
        return result

    def _process(
        self, title: str, inputs: list[str], outputs: list[str], lines: int, function: ChunkFunction
    ) -> Counter[str]:
        return process_chunks(
            title, self._paths(inputs), self._paths(outputs), function, self.pool, lines, self.steps.key
        )

    def _manifest(self, raw: Mapping[str, Any], clean: Mapping[str, Any], binary: Mapping[str, Any]) -> dict[str, Any]:
        recipe = self.recipe
        subword = dict(recipe.subword)
        if subword["name"] != "none":
            subword["model"] = subwords.MODEL_FILES[subword["name"]]
        tests = []
        for name, subset in subset_names(recipe.tests).items():
            texts = dict(zip(("source", "reference"), self._sides("raw", name), strict=False))
            tests.append({"name": name, "subset": subset, "segments": clean[name]["lines"], **texts})
        return {
            "format": 1,
            "dataset": recipe.dataset,
            "artificial": recipe.generator is not None,
            "source_lang": recipe.source_lang,
            "target_lang": recipe.target_lang,
            "recipe": asdict(recipe),
            "tokenizer": recipe.tokenizer,
            "subword": subword,
            "dictionary": binary["dictionary"],
            "train": {"raw_lines": raw["train"]["lines"], **clean["train"]},
            "valid": clean["valid"],
            "tests": tests,
            "versions": self.versions,
        }

    def _report(self, manifest: Mapping[str, Any]) -> None:
        train = manifest["train"]
        removed = ", ".join(f"{count:,} {reason}" for reason, count in train.get("removed", {}).items() if count)
        sizes = [f"train {train['lines']:,} pairs" + (f" (removed: {removed})" if removed else "")]
        sizes += [f"valid {manifest['valid']['lines']:,}"]
        sizes += [f"{test['name']} {test['segments']:,}" for test in manifest["tests"]]
        done = f"{len(self.steps.ran)} steps done" if self.steps.ran else "nothing to do"
        text = f"{self.directory}: {', '.join(sizes)}; dictionary {manifest['dictionary']:,}; {done}"
        say(console, text)

    def _report_removed(self, kept: int, removed: Mapping[str, int]) -> None:
        """Refuse a corpus without training pairs, and warn if cleaning removed most pairs."""
        pairs = kept + sum(removed.values())
        hint = removal_hint(removed, pairs, self.languages, self.recipe.cleaning) if self.recipe.cleaning else ""
        if not kept:
            raise SharingError(
                f"dataset {self.recipe.dataset}: no training pairs left after cleaning; "
                + (hint or f"removed: {dict(removed)}")
            )
        if hint:
            _warn(f"dataset {self.recipe.dataset}: {hint}")

    def _report_unexpected(self, lines: Mapping[str, int]) -> None:
        for name, expected in self.recipe.expected.items():
            if lines[name] != expected:
                _warn(f"{name}: {lines[name]:,} pairs after cleaning; the recipe expects {expected:,}")


def _warn(text: str) -> None:
    say(console, f"warning: {text}", "yellow")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
