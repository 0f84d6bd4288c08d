"""Recompute the scores of results from their kept hypotheses and the references of the data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.compound_split import compound_split_bleu
from fairseq_sharing.evaluation.scoring import score
from fairseq_sharing.files import read_lines, write_text
from fairseq_sharing.preparation.manifest import read_manifest
from fairseq_sharing.reporting.kept_hypotheses import read_kept
from fairseq_sharing.reporting.results import read_result
from fairseq_sharing.reporting.signatures import ignores_case, tokenizer_of

# Comparisons of single runs, which earlier versions wrote.
_OBSOLETE = ("p_value", "baseline", "baseline_sha256")


@dataclass(frozen=True)
class Rescored:
    """What the scoring of a result file gave.

    Attributes:
        file: the result file.
        changes: the changed fields, ``TEST: FIELD OLD -> NEW``; empty if the file was left as it is.
        without: the test sets without kept hypotheses.
    """

    file: Path
    changes: list[str]
    without: list[str]


@dataclass(frozen=True)
class References:
    """The raw references of results.

    Args:
        data: a prepared data directory; ``data/<dataset>`` if None.
        files: references that are not in it, by test set.
    """

    data: Path | None = None
    files: Mapping[str, Path] = field(default_factory=dict)

    def find(self, test: str, dataset: str) -> Path:
        """Find the reference of a test set.

        Raises:
            SharingError: there is none.
        """
        if test in self.files:
            return self.files[test]
        data = self.data or Path("data") / dataset
        for found in read_manifest(data).get("tests", ()):
            if found["name"] == test and "reference" in found:
                return data / found["reference"]
        raise SharingError(
            f"{data}: has no reference of {test}; give the prepared data directory with --data, or the file with "
            f"--reference {test}=FILE"
        )


def rescore(folder: Path, references: References, tokenize: str | None = None) -> list[Rescored]:
    """Recompute the scores of every result in a folder; rewrite the files whose content changes.

    Args:
        folder: results of a study, or a run directory.
        references: the raw references.
        tokenize: sacreBLEU's tokenizer for BLEU; by default that of the recorded signature.

    Returns:
        What happened to each file.

    Raises:
        SharingError: there is no result, or hypotheses are missing, damaged, changed, or of another number of lines
            than the reference. No file has been changed then.
    """
    own = folder / "result.json"
    files = sorted(folder.glob("result*.json" if own.is_file() else "*.json"))
    if not files:
        raise SharingError(f"{folder}: contains no result (*.json); allowed: results/<study> or a run directory")
    found = [_rescore(file, references, tokenize) for file in files]
    for rescored, result in found:
        if rescored.changes:
            text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False)
            write_text(rescored.file, text + "\n")
    return [rescored for rescored, _ in found]


def _rescore(file: Path, references: References, tokenize: str | None) -> tuple[Rescored, dict[str, Any]]:
    result = read_result(file)
    changes: list[str] = []
    without: list[str] = []
    for test, before in result["scores"].items():
        if "hypotheses" not in before:
            without.append(test)
            continue
        hypotheses = read_kept(before, file.parent)
        reference = references.find(test, result["dataset"])
        lines = list(read_lines(reference))
        if len(hypotheses) != len(lines):
            kept = file.parent / before["hypotheses"]
            raise SharingError(f"{kept} has {len(hypotheses)} lines, its reference {reference} has {len(lines)}")
        signature = before["signature"]["bleu"]
        target = before["hypotheses"].removesuffix(".gz").rpartition(".")[2]
        after = {
            **{name: value for name, value in before.items() if name not in _OBSOLETE},
            **score(hypotheses, lines, target, tokenize or tokenizer_of(signature), ignores_case(signature)),
        }
        if "compound_split_bleu" in before:
            after["compound_split_bleu"] = round(compound_split_bleu(hypotheses, lines, target), 4)
        changes += [f"{test}: {change}" for change in _changes(before, after)]
        result["scores"][test] = after
    return Rescored(file, changes, without), result


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} {_shown(before.get(name))} -> {_shown(after.get(name))}"
        for name in dict.fromkeys((*after, *before))
        if before.get(name) != after.get(name)
    ]


def _shown(value: Any) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
