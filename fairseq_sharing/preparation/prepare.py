"""All steps from a recipe to a data directory, each skipped when it is done already."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fairseq_sharing.errors import SharingError
from fairseq_sharing.preparation import subwords
from fairseq_sharing.preparation.binarise import binarise, preprocess_arguments, subset_names
from fairseq_sharing.preparation.clean import REASONS, reason_to_remove
from fairseq_sharing.preparation.fetch import fetch
from fairseq_sharing.preparation.files import atomic_write, read_lines, sha256
from fairseq_sharing.preparation.parallel import CHUNK, Workers, chunks
from fairseq_sharing.preparation.progress import console, progress
from fairseq_sharing.preparation.recipe import Recipe, Source
from fairseq_sharing.preparation.steps import Steps
from fairseq_sharing.preparation.text import LINE_BREAKS, Pipeline

MAX_POSITIONS = 1024
"""Subwords that fairseq's Transformers read in a sentence unless told otherwise."""

PACKAGES = ("fairseq-fixed", "sacremoses", "subword-nmt", "sentencepiece")


def prepare(
    recipe: Recipe, directory: Path, mirror: str | None = None, workers: int | None = None
) -> dict[str, Any]:
    """Make a data directory, or bring one up to date.

    Args:
        recipe: what to make.
        directory: where to.
        mirror: local folder, file:// or http(s):// URL that holds the files of the recipe's URLs.
        workers: processes; all processors when None.

    Returns:
        The manifest.

    Raises:
        SharingError: naming the file and line, or the flag, that is at fault.
    """
    workers = workers or len(os.sched_getaffinity(0))
    try:
        steps = Steps(directory)
        with steps.lock(), Workers(workers) as pool:
            return _Preparation(recipe, steps, pool, mirror).run()
    except OSError as error:
        raise SharingError(f"{error.filename or directory}: {error.strerror or error}") from error


class _Preparation:
    def __init__(self, recipe: Recipe, steps: Steps, pool: Workers, mirror: str | None):
        self.recipe, self.steps, self.pool, self.mirror = recipe, steps, pool, mirror
        self.directory = steps.directory
        self.versions = {package: version(package) for package in PACKAGES}
        # What a worker process needs to build the pipeline; a path and plain values, so it can be a cache's key.
        self.settings = _Frozen(
            languages=recipe.languages,
            tokenizer=recipe.tokenizer,
            subword=recipe.subword,
            cleaning=recipe.cleaning,
        )

    def run(self) -> dict[str, Any]:
        """Do all steps and give the manifest."""
        recipe = self.recipe
        raw = self._generate() if recipe.generator else {name: self._unpack(name) for name in recipe.splits}
        clean = {name: self._tokenize(name, raw[name]["lines"]) for name in recipe.splits}
        lines = {name: result["lines"] for name, result in clean.items()}
        if not lines["train"]:
            raise SharingError(
                f"dataset {recipe.dataset}: no training pair is left after cleaning: {clean['train']}"
            )
        model = self._learn(2 * lines["train"])
        segmented = {name: self._segment(name, lines[name], model) for name in recipe.splits}
        order = {name: lines[name] for name in ("train", "valid", *recipe.tests)}
        tokens = sum(result["tokens"] for result in segmented.values())
        binary = self._binarise(order, tokens)
        manifest = self.steps.finish(self._manifest(raw, clean, binary))
        self._report(manifest)
        return manifest

    def _both(self, folder: str, name: str) -> list[str]:
        return [f"{folder}/{name}.{lang}" for lang in (self.recipe.source_lang, self.recipe.target_lang)]

    def _generate(self) -> dict[str, dict[str, Any]]:
        from fairseq_sharing.preparation import toy

        languages = (self.recipe.source_lang, self.recipe.target_lang)
        files = [file for name in self.recipe.splits for file in self._both("raw", name)]

        def action() -> dict[str, Any]:
            corpus = toy.generate()
            for name, split in self.recipe.splits.items():
                if split.lines is not None and len(corpus[name]) != split.lines:
                    raise SharingError(
                        f"{name}: {len(corpus[name]):,} pairs generated, expected {split.lines:,}"
                    )
                for lang in languages:
                    with atomic_write(self.directory / f"raw/{name}.{lang}") as file:
                        file.writelines(f"{pair[lang]}\n".encode() for pair in corpus[name])
            return {name: {"lines": len(pairs)} for name, pairs in corpus.items()}

        settings = {"generator": self.recipe.generator, "grammar": toy.fingerprint()}
        return self.steps.run("raw", settings, {}, files, action)

    def _unpack(self, name: str) -> dict[str, Any]:
        split = self.recipe.splits[name]
        sources = [split.texts[lang] for lang in (self.recipe.source_lang, self.recipe.target_lang)]
        digests = {}
        for lang, source in zip((self.recipe.source_lang, self.recipe.target_lang), sources, strict=True):
            if source.path is not None and not Path(source.path).is_file():
                raise SharingError(f"{source.path}: no such file ({name}, {lang})")
            digests[lang] = source.sha256 or sha256(Path(str(source.path)))

        def action() -> dict[str, Any]:
            counts: Counter[str] = Counter()
            paths = [self._local(source) for source in sources]
            outputs = [self.directory / file for file in self._both("raw", name)]
            found = [
                _normalise(path, output, split.lines, counts)
                for path, output in zip(paths, outputs, strict=True)
            ]
            if found[0] != found[1]:
                raise SharingError(
                    f"{name}: the two sides differ in length: {paths[0]} has {found[0]:,} lines, "
                    f"{paths[1]} has {found[1]:,}"
                )
            for path, lines in zip(paths, found, strict=True):
                if split.lines is not None and lines != split.lines:
                    raise SharingError(f"{path}: {lines:,} lines, expected {split.lines:,}")
            return {"lines": found[0], "characters": dict(counts)}

        return self.steps.run(f"raw/{name}", {"lines": split.lines}, digests, self._both("raw", name), action)

    def _local(self, source: Source) -> Path:
        if source.path is not None:
            return Path(source.path)
        if source.sha256 is None:
            raise SharingError(f"{source.url}: the recipe gives no sha256")
        return fetch(str(source.url), source.sha256, self.directory / "download", self.mirror)

    def _tokenize(self, name: str, lines: int) -> dict[str, Any]:
        limits = self.recipe.cleaning if name == "train" else None
        settings = {
            "tokenizer": self.recipe.tokenizer,
            "cleaning": limits,
            "sacremoses": self.versions["sacremoses"] if self.recipe.tokenizer["name"] == "moses" else None,
        }

        def action() -> dict[str, Any]:
            function = partial(_tokenize_chunk, self.settings, clean=limits is not None)
            removed = self._transform(name, "raw", "tok", lines, function, f"tokenise {name}")
            kept = lines - sum(removed[reason] for reason in REASONS)
            if limits is not None:
                return {"lines": kept, "removed": {reason: removed[reason] for reason in REASONS}}
            return {"lines": kept, "empty": removed["empty_kept"]}

        return self.steps.run(
            f"tok/{name}", settings, self._both("raw", name), self._both("tok", name), action
        )

    def _learn(self, lines: int) -> str | None:
        subword = self.recipe.subword
        if subword["name"] == "none":
            return None
        model = subwords.MODEL_FILES[subword["name"]]
        package = {"bpe": "subword-nmt", "sentencepiece": "sentencepiece"}[subword["name"]]
        texts = [self.directory / file for file in self._both("tok", "train")]

        def action() -> dict[str, Any]:
            output = self.directory / model
            if subword["name"] == "bpe":
                return {"learned": subwords.learn_bpe(texts, subword["size"], output, lines)}
            return {"learned": subwords.learn_sentencepiece(texts, subword["size"], output)}

        settings = {"subword": subword, package: self.versions[package]}
        self.steps.run("subwords", settings, self._both("tok", "train"), [model], action)
        return model

    def _segment(self, name: str, lines: int, model: str | None) -> dict[str, Any]:
        def action() -> dict[str, Any]:
            path = self.directory / model if model else None
            function = partial(_segment_chunk, self.settings, path)
            counts = self._transform(name, "tok", "bpe", lines, function, f"segment {name}")
            return {"tokens": counts["tokens"], "over_long": counts["over_long"]}

        inputs = [*self._both("tok", name), *([model] if model else [])]
        settings = {"subword": self.recipe.subword}
        result = self.steps.run(f"bpe/{name}", settings, inputs, self._both("bpe", name), action)
        if result["over_long"] and name != "train":
            console.print(
                f"[yellow]{name}: {result['over_long']} pairs have a side of more than {MAX_POSITIONS} subwords, the "
                "most that fairseq's Transformers read unless given --max-source-positions and --max-target-positions"
            )
        return result

    def _transform(
        self, name: str, before: str, after: str, lines: int, function: Any, title: str
    ) -> Counter[str]:
        """Send a split through a function of chunks of pairs, keeping the order."""
        counts: Counter[str] = Counter()
        inputs = [read_lines(self.directory / file) for file in self._both(before, name)]
        pairs = zip(*inputs, strict=True)
        with contextlib.ExitStack() as stack:
            outputs = [
                stack.enter_context(atomic_write(self.directory / file)) for file in self._both(after, name)
            ]
            advance = stack.enter_context(progress(title, lines, "pairs"))
            for texts, chunk_counts, size in self.pool.map(function, chunks(pairs)):
                for output, text in zip(outputs, texts, strict=True):
                    output.write(text.encode("utf-8"))
                counts.update(chunk_counts)
                advance(size)
        return counts

    def _binarise(self, lines: dict[str, int], tokens: int) -> dict[str, Any]:
        recipe = self.recipe
        arguments = preprocess_arguments(recipe.source_lang, recipe.target_lang, recipe.tests, 1)
        settings = {"arguments": arguments[:-2], "fairseq-fixed": self.versions["fairseq-fixed"]}
        action = partial(
            binarise,
            self.directory,
            recipe.source_lang,
            recipe.target_lang,
            lines,
            tokens,
            self.pool.processes,
        )
        inputs = [file for name in lines for file in self._both("bpe", name)]
        return self.steps.run("bin", settings, inputs, ["bin"], action)

    def _manifest(
        self, raw: Mapping[str, Any], clean: Mapping[str, Any], binary: Mapping[str, Any]
    ) -> dict[str, Any]:
        recipe = self.recipe
        subword = dict(recipe.subword)
        if subword["name"] != "none":
            subword["model"] = subwords.MODEL_FILES[subword["name"]]
        tests = []
        for name, subset in subset_names(recipe.tests).items():
            source, reference = self._both("raw", name)
            tests.append(
                {
                    "name": name,
                    "subset": subset,
                    "segments": clean[name]["lines"],
                    "source": source,
                    "reference": reference,
                }
            )
        return {
            "format": 1,
            "dataset": recipe.dataset,
            "source_lang": recipe.source_lang,
            "target_lang": recipe.target_lang,
            "recipe": recipe.as_dict(),
            "tokenizer": recipe.tokenizer,
            "subword": subword,
            "dictionary": binary["dictionary"],
            "train": {"raw_lines": raw["train"]["lines"], **clean["train"]},
            "valid": clean["valid"],
            "tests": tests,
            "versions": {"fairseq-sharing": _own_version(), **self.versions},
        }

    def _report(self, manifest: Mapping[str, Any]) -> None:
        train = manifest["train"]
        removed = ", ".join(f"{reason} {count:,}" for reason, count in train["removed"].items() if count)
        console.print(
            f"{self.directory}: train {train['lines']:,} pairs"
            + (f" (removed: {removed})" if removed else "")
            + f", valid {manifest['valid']['lines']:,}"
            + "".join(f", {test['name']} {test['segments']:,}" for test in manifest["tests"])
            + f"; {manifest['dictionary']:,} symbols; "
            + (f"done: {', '.join(self.steps.ran)}" if self.steps.ran else "nothing to do"),
            soft_wrap=True,
            highlight=False,
        )


class _Frozen:
    """Settings of the worker processes, usable as a key because they are compared by their text."""

    def __init__(self, **values: Any):
        self.values = values
        self._key = repr(values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Frozen) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


Chunk = list[tuple[str, str]]
Transformed = tuple[tuple[str, str], Counter[str], int]


@lru_cache(maxsize=2)
def _pipeline(settings: _Frozen, model: Path | None) -> Pipeline:
    values = settings.values
    return Pipeline(values["languages"], values["tokenizer"], values["subword"], model)


def _tokenize_chunk(settings: _Frozen, chunk: Chunk, clean: bool) -> Transformed:
    pipeline = _pipeline(settings, None)
    counts: Counter[str] = Counter()
    kept = []
    for source, target in chunk:
        pair = pipeline.tokenize(source, "source"), pipeline.tokenize(target, "target")
        reason = reason_to_remove(*pair, settings.values["cleaning"]) if clean else None
        if reason:
            counts[reason] += 1
            continue
        counts["empty_kept"] += not all(pair)
        kept.append(pair)
    return _text(kept), counts, len(chunk)


def _segment_chunk(settings: _Frozen, model: Path | None, chunk: Chunk) -> Transformed:
    pipeline = _pipeline(settings, model)
    pairs = [(pipeline.segment(source), pipeline.segment(target)) for source, target in chunk]
    lengths = [
        (source.count(" ") + bool(source), target.count(" ") + bool(target)) for source, target in pairs
    ]
    counts = Counter(
        tokens=sum(map(sum, lengths)), over_long=sum(max(length) >= MAX_POSITIONS for length in lengths)
    )
    return _text(pairs), counts, len(chunk)


def _text(pairs: Chunk) -> tuple[str, str]:
    source, target = ("".join(f"{pair[side]}\n" for pair in pairs) for side in (0, 1))
    return source, target


def _normalise(path: Path, output: Path, expected: int | None, counts: Counter[str]) -> int:
    """Copy a text with line feeds as its only line ends; return the number of its lines."""
    number = 0
    with atomic_write(output) as file, progress(f"read {path.name}", expected) as advance:
        for number, line in enumerate(read_lines(path), start=1):
            if number == 1 and line.startswith("\ufeff"):
                line = line[1:]
                counts["byte_order_marks"] += 1
            if line.endswith("\r"):
                line = line[:-1]
                counts["carriage_returns_at_line_end"] += 1
            if found := LINE_BREAKS.findall(line):
                counts["line_breaks_inside"] += len(found)
                line = line.replace("\r", " ")
            file.write(line.encode("utf-8") + b"\n")
            if number % CHUNK == 0:
                advance(CHUNK)
    return number


def _own_version() -> str:
    try:
        return version("fairseq-sharing")
    except Exception:
        return "not installed"
