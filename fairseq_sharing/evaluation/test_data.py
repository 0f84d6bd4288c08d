"""The test sets of an evaluation: those of a prepared data directory, or of plain fairseq data with raw references."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.direction import Direction
from fairseq_sharing.experiment.layers import check_name
from fairseq_sharing.files import read_lines, sha256
from fairseq_sharing.preparation.manifest import MANIFEST, read_manifest
from fairseq_sharing.preparation.text import Pipeline


@dataclass(frozen=True)
class Subset:
    """One test set.

    Attributes:
        name: its name in results.
        subset: fairseq's name of the binarized text.
        segments: number of lines.
        source: the raw source; None if unknown.
        reference: the raw reference; None for a language model.
        recorded: what records the number of lines, for error messages.
    """

    name: str
    subset: str
    segments: int
    source: Path | None
    reference: Path | None
    recorded: str


@dataclass(frozen=True)
class EvaluationData:
    """Test sets, the binarized data they are in, and how their text was prepared.

    Attributes:
        dataset: the name of the data.
        binarized: fairseq's data directory.
        direction: source and target language; the target is empty for a language model.
        tests: the test sets.
        files: hashes that identify the binarized data.
        pipeline: converts subwords to text.
        artificial: whether sentences may be quoted in results.
        lowercase: whether the training text is lower-cased, so that scores ignore case.
    """

    dataset: str
    binarized: Path
    direction: Direction
    tests: tuple[Subset, ...]
    files: Mapping[str, str]
    pipeline: Pipeline
    artificial: bool = False
    lowercase: bool = False


def prepared_data(data: Path) -> EvaluationData:
    """Read the test sets of a prepared data directory.

    Raises:
        SharingError: there is no manifest, or preparation has not finished.
    """
    manifest = read_manifest(data, ("source_lang", "target_lang", "tests", "files"))
    if not manifest:
        raise SharingError(f"{data / MANIFEST}: no such file; give the prepared data directory with --data")
    return EvaluationData(
        dataset=str(manifest.get("dataset") or data.name),
        binarized=data / "bin",
        direction=(manifest["source_lang"], manifest["target_lang"]),
        tests=tuple(_subset(test, data) for test in manifest["tests"]),
        files=manifest["files"],
        pipeline=Pipeline.from_manifest(data),
        artificial=bool(manifest.get("artificial")),
        lowercase=bool((manifest.get("tokenizer") or {}).get("lowercase")),
    )


def _subset(test: Mapping[str, Any], data: Path) -> Subset:
    return Subset(
        name=test["name"],
        subset=test["subset"],
        segments=int(test["segments"]),
        source=data / test["source"],
        reference=data / test["reference"] if "reference" in test else None,
        recorded=f"{data / MANIFEST} records",
    )


def plain_data(
    binarized: Path, direction: Direction, tests: Sequence[str], detokenizer: str | None, dataset: str
) -> EvaluationData:
    """Describe data that fairseq-preprocess binarized.

    Args:
        binarized: its output.
        direction: source and target language.
        tests: test sets as ``NAME=SUBSET,REFERENCE``: the name in results, fairseq's name of the binarized text, and
            the file of the raw reference.
        detokenizer: ``moses`` or ``none``; None for ``none`` with SentencePiece, whose text needs none, else ``moses``.
        dataset: the name of the data in results.

    Raises:
        SharingError: the data have no dictionary, or a test set is malformed, named twice, not binarized, or has no
            reference.
    """
    files = {file.name: sha256(file) for file in sorted(binarized.glob("dict.*.txt"))}
    dictionary = binarized / f"dict.{direction[1]}.txt"
    if dictionary.name not in files:
        raise SharingError(f"{dictionary}: no such file; allowed: the output of fairseq-preprocess")
    found: dict[str, Subset] = {}
    for word in tests:
        name, equals, rest = word.partition("=")
        subset, comma, reference = rest.partition(",")
        if not (equals and comma and subset and reference):
            raise SharingError(f"--test {word}: must be NAME=SUBSET,REFERENCE, for example news=test,raw/test.de")
        check_name(name, "--test")
        if name in found:
            raise SharingError(f"--test {name}: given twice; allowed: each name once")
        parts = sorted(binarized.glob(f"{glob.escape(subset)}.{'-'.join(direction)}.*"))
        if not parts:
            raise SharingError(f"--test {word}: {binarized} has no subset {subset} for {'-'.join(direction)}")
        files |= {file.name: sha256(file) for file in parts}
        path = Path(reference)
        found[name] = Subset(name, subset, sum(1 for _ in read_lines(path)), None, path, f"{path} has")
    subword = _subword(dictionary)
    tokenizer = detokenizer or ("none" if subword == "sentencepiece" else "moses")
    languages = dict(zip(("source", "target"), direction, strict=True))
    # Moses escapes some characters (&apos;) unless told otherwise; unescaped text stays as it is.
    pipeline = Pipeline(languages, {"name": tokenizer, "escape": True}, {"name": subword})
    return EvaluationData(dataset, binarized, direction, tuple(found.values()), files, pipeline)


def _subword(dictionary: Path) -> str:
    """Recognize the subwords of a dictionary by their marks: subword-nmt's ``@@`` or SentencePiece's ``\u2581``."""
    words = [line.rpartition(" ")[0] for line in read_lines(dictionary)]
    if any(word.endswith("@@") for word in words):
        return "bpe"
    return "sentencepiece" if any(word.startswith("\u2581") for word in words) else "none"
