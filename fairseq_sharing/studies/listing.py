"""List what is available: studies, prepared data, and runs with their state, scores and disk use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.run_directory import RunDirectory
from fairseq_sharing.experiment.study import Study, read_study
from fairseq_sharing.preparation.manifest import MANIFEST, read_manifest
from fairseq_sharing.resources import configs_dir
from fairseq_sharing.studies.states import RunState, read_directory


@dataclass(frozen=True)
class ListedRun:
    """A run directory.

    Attributes:
        path: the directory.
        state: its state; None if its files are damaged.
        error: what is damaged.
        disk: bytes on disk.
    """

    path: Path
    state: RunState | None
    error: str
    disk: int


@dataclass(frozen=True)
class ListedData:
    """A prepared data directory.

    Attributes:
        path: the directory.
        description: languages and number of training segments, or what is damaged.
        disk: bytes on disk.
    """

    path: Path
    description: str
    disk: int


def studies() -> list[Study]:
    """Read the package's own studies."""
    return [read_study(file) for file in sorted((configs_dir() / "studies").glob("*.yaml"))]


def prepared_data(folder: Path) -> list[ListedData]:
    """List the prepared data directories in a directory."""
    found = []
    for path in sorted(file.parent for file in folder.glob(f"*/{MANIFEST}")):
        try:
            manifest = read_manifest(path)
            languages = [manifest[key] for key in ("source_lang", "target_lang") if manifest.get(key)]
            tests = [test["name"] for test in manifest.get("tests", ())]
            description = f"{'-'.join(languages)}; tests: {', '.join(tests) or 'none'}"
        except (SharingError, OSError) as error:
            description = str(error)
        found.append(ListedData(path, description, disk_use(path)))
    return found


def runs(folder: Path) -> list[ListedRun]:
    """List the run directories below a directory, ``<study>/<row>-seed<seed>``."""
    found = []
    for path in sorted(file.parent for file in folder.glob("*/*/run.json")):
        state, error = None, ""
        try:
            state = read_directory(RunDirectory(path), None, None)
        except (SharingError, OSError) as problem:
            error = str(problem)
        found.append(ListedRun(path, state, error, disk_use(path)))
    return found


def disk_use(folder: Path) -> int:
    """Sum the sizes of the files in a directory, in bytes."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


def scores_in_words(scores: Mapping[str, Any] | None) -> str:
    """Format the mean score over test sets: BLEU, or perplexity for a language model; empty without scores."""
    for metric, name in (("bleu", "BLEU"), ("perplexity", "perplexity")):
        values = [float(score[metric]) for score in (scores or {}).values() if metric in score]
        if values:
            mean = " (mean)" if len(values) > 1 else ""
            return f"{name} {fmean(values):.2f}{mean}"
    return ""


def size_in_words(size: int) -> str:
    """Format a number of bytes."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size} bytes"
