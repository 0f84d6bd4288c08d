"""All steps from a recipe to a data directory, each skipped when it is done already."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from fairseq_sharing.errors import SharingError
from fairseq_sharing.preparation import subwords, toy
from fairseq_sharing.preparation.binarise import binarise, preprocess_arguments, subset_names
from fairseq_sharing.preparation.clean import REASONS
from fairseq_sharing.preparation.fetch import fetch
from fairseq_sharing.preparation.files import atomic_write, read_lines, sha256
from fairseq_sharing.preparation.parallel import Workers, chunks
from fairseq_sharing.preparation.progress import console, progress
from fairseq_sharing.preparation.recipe import Recipe
from fairseq_sharing.preparation.steps import Steps, locked
from fairseq_sharing.preparation.transform import MAX_SUBWORDS, Chunk, Transformed, segment_chunk, tokenize_chunk
from fairseq_sharing.preparation.unpack import unpack

PACKAGES = ("fairseq-sharing", "fairseq-fixed", "sacremoses", "subword-nmt", "sentencepiece")


def prepare(recipe: Recipe, directory: Path, mirror: str | None = None, workers: int | None = None) -> dict[str, Any]:
    """Make a data directory, or bring one up to date.

    Args:
        recipe: what to make.
        directory: where to.
        mirror: local folder, file:// or http(s):// URL that holds the files of the recipe's URLs.
        workers: processes; one a processor when None.

    Returns:
        The manifest.

    Raises:
        SharingError: naming the file and line, or the flag, that is at fault.
    """
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers < 1:
        raise SharingError(f"--workers must be at least 1, got {workers}")
    try:
        with locked(directory), Workers(workers) as pool:
            return _Preparation(recipe, Steps(directory), pool, mirror).run()
    except OSError as error:
        raise SharingError(f"{error.filename or directory}: {error.strerror or error}") from error


class _Preparation:
    def __init__(self, recipe: Recipe, steps: Steps, pool: Workers, mirror: str | None):
        self.recipe, self.steps, self.pool, self.mirror = recipe, steps, pool, mirror
        self.directory = steps.directory
        self.versions = {package: _version(package) for package in PACKAGES}
        self.settings = json.dumps(
            {"languages": recipe.languages, "tokenizer": recipe.tokenizer, "subword": recipe.subword}
        )

    def run(self) -> dict[str, Any]:
        """Do all steps and give the manifest."""
        if self.steps.dataset not in (None, self.recipe.dataset):
            raise SharingError(
                f"--out {self.directory}: holds dataset {self.steps.dataset}, not {self.recipe.dataset}; "
                "give another directory"
            )
        raw = self._generate() if self.recipe.generator else {name: self._unpack(name) for name in self.recipe.splits}
        clean = {name: self._tokenize(name, raw[name]["lines"]) for name in self.recipe.splits}
        lines = {name: clean[name]["lines"] for name in ("train", "valid", *self.recipe.tests)}
        if not lines["train"]:
            removed = clean["train"]["removed"]
            raise SharingError(f"dataset {self.recipe.dataset}: cleaning leaves no training pair, removed: {removed}")
        model = self._learn(2 * lines["train"])
        tokens = sum(self._segment(name, number, model)["tokens"] for name, number in lines.items())
        binary = self._binarise(lines, tokens)
        manifest = self.steps.finish(self._manifest(raw, clean, binary))
        self._report(manifest)
        return manifest

    def _both(self, folder: str, name: str) -> list[str]:
        return [f"{folder}/{name}.{lang}" for lang in self.recipe.languages.values()]

    def _paths(self, folder: str, name: str) -> list[Path]:
        return [self.directory / file for file in self._both(folder, name)]

    def _generate(self) -> dict[str, dict[str, Any]]:
        def action() -> dict[str, Any]:
            corpus = toy.generate(sizes)
            for name in sizes:
                for lang, path in zip(self.recipe.languages.values(), self._paths("raw", name), strict=True):
                    with atomic_write(path) as file:
                        file.writelines(f"{pair[lang]}\n".encode() for pair in corpus[name])
            return {name: {"lines": len(pairs)} for name, pairs in corpus.items()}

        sizes = {name: split.lines or 0 for name, split in self.recipe.splits.items()}
        settings = {"generator": self.recipe.generator, "grammar": toy.fingerprint(), "lines": sizes}
        files = [file for name in self.recipe.splits for file in self._both("raw", name)]
        return self.steps.run("raw", settings, {}, files, action)

    def _unpack(self, name: str) -> dict[str, Any]:
        split = self.recipe.splits[name]
        sources = {lang: split.texts[lang] for lang in self.recipe.languages.values()}
        digests = {lang: source.sha256 or sha256(Path(source.path)) for lang, source in sources.items()}

        def action() -> dict[str, Any]:
            paths = [
                Path(source.path) if source.path else fetch(source.url, digests[lang], downloads, self.mirror)
                for lang, source in sources.items()
            ]
            return unpack(name, paths, self._paths("raw", name), split.lines)

        downloads = self.directory / "download"
        return self.steps.run(f"raw/{name}", {"lines": split.lines}, digests, self._both("raw", name), action)

    def _tokenize(self, name: str, lines: int) -> dict[str, Any]:
        limits = self.recipe.cleaning if name == "train" else None

        def action() -> dict[str, Any]:
            function = partial(tokenize_chunk, self.settings, limits)
            counts = self._transform(f"tokenise {name}", name, "raw", "tok", lines, function)
            removed = {reason: counts[reason] for reason in REASONS}
            kept = lines - sum(removed.values())
            return {"lines": kept, "removed": removed} if limits else {"lines": kept, "empty": counts["kept_empty"]}

        settings: dict[str, Any] = {"tokenizer": self.recipe.tokenizer, "cleaning": limits}
        if self.recipe.tokenizer["name"] == "moses":
            settings["sacremoses"] = self.versions["sacremoses"]
        return self.steps.run(f"tok/{name}", settings, self._both("raw", name), self._both("tok", name), action)

    def _learn(self, lines: int) -> str | None:
        subword = self.recipe.subword
        if subword["name"] == "none":
            return None
        model = subwords.MODEL_FILES[subword["name"]]
        package = subwords.PACKAGES[subword["name"]]
        learn = {"bpe": subwords.learn_bpe, "sentencepiece": subwords.learn_sentencepiece}[subword["name"]]

        def action() -> dict[str, Any]:
            return {"learned": learn(self._paths("tok", "train"), subword["size"], self.directory / model, lines)}

        settings = {"subword": subword, package: self.versions[package]}
        self.steps.run("subwords", settings, self._both("tok", "train"), [model], action)
        return model

    def _segment(self, name: str, lines: int, model: str | None) -> dict[str, Any]:
        def action() -> dict[str, Any]:
            function = partial(segment_chunk, self.settings, self.directory / model if model else None)
            counts = self._transform(f"segment {name}", name, "tok", "bpe", lines, function)
            return {"tokens": counts["tokens"], "over_long": counts["over_long"]}

        inputs = [*self._both("tok", name), *([model] if model else [])]
        settings = {"subword": self.recipe.subword}
        result = self.steps.run(f"bpe/{name}", settings, inputs, self._both("bpe", name), action)
        if result["over_long"] and name != "train":
            console.print(
                f"[yellow]warning:[/] {name}: {result['over_long']} pairs have a side of more than {MAX_SUBWORDS} "
                "subwords; fairseq stops there unless --max-source-positions and --max-target-positions are higher",
                soft_wrap=True,
                highlight=False,
            )
        return result

    def _transform(
        self, title: str, name: str, before: str, after: str, lines: int, function: Callable[[Chunk], Transformed]
    ) -> Counter[str]:
        """Send a split through a function of chunks of pairs, keeping the order."""
        counts: Counter[str] = Counter()
        pairs = zip(*map(read_lines, self._paths(before, name)), strict=True)
        with contextlib.ExitStack() as stack:
            outputs = [stack.enter_context(atomic_write(path)) for path in self._paths(after, name)]
            advance = stack.enter_context(progress(title, lines, "pairs"))
            for texts, chunk_counts, size in self.pool.map(function, chunks(pairs)):
                for output, text in zip(outputs, texts, strict=True):
                    output.write(text.encode("utf-8"))
                counts.update(chunk_counts)
                advance(size)
        return counts

    def _binarise(self, lines: dict[str, int], tokens: int) -> dict[str, Any]:
        languages = self.recipe.source_lang, self.recipe.target_lang
        arguments = preprocess_arguments(*languages, self.recipe.tests)
        settings = {"arguments": arguments, "fairseq-fixed": self.versions["fairseq-fixed"]}
        action = partial(binarise, self.directory, *languages, lines, tokens, self.pool.processes)
        inputs = [file for name in lines for file in self._both("bpe", name)]
        return self.steps.run("bin", settings, inputs, ["bin"], action)

    def _manifest(self, raw: Mapping[str, Any], clean: Mapping[str, Any], binary: Mapping[str, Any]) -> dict[str, Any]:
        recipe = self.recipe
        subword = dict(recipe.subword)
        if subword["name"] != "none":
            subword["model"] = subwords.MODEL_FILES[subword["name"]]
        tests = []
        for name, subset in subset_names(recipe.tests).items():
            source, reference = self._both("raw", name)
            test = {"name": name, "subset": subset, "segments": clean[name]["lines"]}
            tests.append({**test, "source": source, "reference": reference})
        return {
            "format": 1,
            "dataset": recipe.dataset,
            "artificial": recipe.generator is not None,
            "source_lang": recipe.source_lang,
            "target_lang": recipe.target_lang,
            "recipe": recipe.as_dict(),
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
        removed = ", ".join(f"{count:,} {reason}" for reason, count in train["removed"].items() if count)
        sizes = [f"train {train['lines']:,} pairs" + (f" (removed: {removed})" if removed else "")]
        sizes += [f"valid {manifest['valid']['lines']:,}"]
        sizes += [f"{test['name']} {test['segments']:,}" for test in manifest["tests"]]
        done = f"{len(self.steps.ran)} steps done" if self.steps.ran else "nothing to do"
        text = f"{self.directory}: {', '.join(sizes)}; dictionary {manifest['dictionary']:,}; {done}"
        console.print(text, soft_wrap=True, highlight=False)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
