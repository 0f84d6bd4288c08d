"""Sequence-level distillation: write a data directory whose training targets are a teacher's translations."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fairseq_sharing.distillation.select import reasons, select_chunk
from fairseq_sharing.distillation.settings import DistillationSettings
from fairseq_sharing.distillation.teacher import Teacher
from fairseq_sharing.distillation.translate import CHUNK, References, translate_chunk
from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.command_line import refuse_separator
from fairseq_sharing.experiment.environment import cpu_cores
from fairseq_sharing.files import atomic_write, inside, sha256
from fairseq_sharing.preparation.binarize import data_names, dictionary_names
from fairseq_sharing.preparation.binarize_text import binarize_text
from fairseq_sharing.preparation.manifest import DISTILL, read_manifest
from fairseq_sharing.preparation.parallel import Workers
from fairseq_sharing.preparation.progress import console
from fairseq_sharing.preparation.steps import ResumableSteps, locked
from fairseq_sharing.preparation.stream import process_chunks
from fairseq_sharing.terminal import say

TRANSLATIONS = "translations/train.tsv"
_WORK = "work"  # exported teacher, until all translations are complete
_NEEDED = ("source_lang", "target_lang", "tokenizer", "subword", "files", "train", "valid", "tests")
_TRAINING = ("train", "train+valid")


def distill(teacher: Teacher, settings: DistillationSettings, out: Path, workers: int | None = None) -> dict[str, Any]:
    """Create or update a data directory with a teacher's translations.

    Dictionaries, subword model, validation and test sets are copies of those of the teacher's data.

    Args:
        teacher: the teacher.
        settings: the settings.
        out: the output directory.
        workers: number of processes with one thread each; None for one per CPU core, or one for a GPU.

    Returns:
        The manifest.

    Raises:
        SharingError: the data changed since its preparation, CTranslate2 does not support the teacher, no pair is
            kept, or the directory contains something else.
    """
    workers = workers or (1 if teacher.device == "cuda" else cpu_cores())
    refuse_separator(out.resolve(), "--out")
    manifest = read_manifest(teacher.data, _NEEDED)
    if not manifest["target_lang"]:
        raise SharingError(f"{teacher.data}: monolingual data; allowed: prepared parallel data")
    with locked(out), Workers(workers) as pool:
        return _Distillation(teacher, settings, manifest, ResumableSteps(out, DISTILL), pool).run()


class _Distillation:
    def __init__(
        self,
        teacher: Teacher,
        settings: DistillationSettings,
        manifest: Mapping[str, Any],
        steps: ResumableSteps,
        pool: Workers,
    ):
        self.teacher, self.settings, self.manifest, self.steps, self.pool = teacher, settings, manifest, steps, pool
        self.languages = [manifest["source_lang"], manifest["target_lang"]]
        self.texts = [f"bpe/train.{language}" for language in self.languages]
        self.dictionaries = [f"bin/{name}" for name in dictionary_names(self.languages)]
        lowercase = bool(manifest["tokenizer"].get("lowercase"))
        self.references = References(teacher.data, self.languages[1], lowercase)
        self.identity = teacher.identity()

    def run(self) -> dict[str, Any]:
        """Run all steps and return the manifest."""
        self._copy()
        self._translate()
        shutil.rmtree(inside(self.steps.directory, _WORK), ignore_errors=True)
        counts = self._select()
        for text, dictionary, data in zip(
            self.texts, self.dictionaries, data_names("train", self.languages), strict=True
        ):
            binarize_text(self.steps, self.pool, text, dictionary, f"bin/{data}", counts["lines"])
        manifest = self.steps.finish(self._manifest(counts))
        self._report(manifest)
        return manifest

    def _copy(self) -> None:
        """Copy everything except for the training text."""
        recorded = self.manifest["files"]
        files = {
            file: digest
            for file, digest in recorded.items()
            if not Path(file).name.startswith(tuple(f"{name}." for name in _TRAINING))
        }

        def action() -> dict[str, Any]:
            for file, digest in files.items():
                path = self._verified(file, digest)
                with path.open("rb") as source, atomic_write(inside(self.steps.directory, file)) as copy:
                    shutil.copyfileobj(source, copy)
            return {}

        self.steps.run("copy", {}, files, list(files), action)

    def _verified(self, file: str, digest: str) -> Path:
        """Return the path of a file of the teacher's data, which must be as recorded."""
        path = inside(self.teacher.data, file)
        if not path.is_file() or sha256(path) != digest:
            raise SharingError(f"{path}: missing or changed since its preparation; re-run fairseq-sharing prepare")
        return path

    def _training_files(self) -> dict[str, str]:
        """Return the hashes of the teacher's training text, by file."""
        for text in self.texts:
            if text not in self.manifest["files"]:
                raise SharingError(f"{self.teacher.data}: its manifest lists no {text}; re-run fairseq-sharing prepare")
        return {text: self.manifest["files"][text] for text in self.texts}

    def _translate(self) -> None:
        files = self._training_files()
        lines = int(self.manifest["train"]["lines"])

        def action() -> dict[str, Any]:
            texts = [self._verified(file, digest) for file, digest in files.items()]
            work = inside(self.steps.directory, _WORK)
            teacher = self.teacher.exported(work / f"teacher-{self.steps.key[:16]}", console)
            function = partial(translate_chunk, teacher, self.settings, self.references)
            output = self.steps.directory / TRANSLATIONS
            counts = process_chunks("translate", texts, [output], function, self.pool, lines, self.steps.key, CHUNK)
            if counts["sentences"] != lines:
                raise SharingError(f"{self.teacher.data}: its training text does not have the {lines:,} recorded lines")
            return dict(counts)

        settings = {**self.settings.translation(), "teacher": self.identity, "chunk": CHUNK}
        self.steps.run("translate", settings, files, [TRANSLATIONS], action)

    def _select(self) -> dict[str, Any]:
        files = self._training_files()

        def action() -> dict[str, Any]:
            inputs = [*(self._verified(*item) for item in files.items()), self.steps.directory / TRANSLATIONS]
            dictionary = self.dictionaries[1]
            path, digest = self.steps.directory / dictionary, self.steps.hashes[dictionary]
            function = partial(select_chunk, self.settings, self.references, path, digest)
            outputs = [self.steps.directory / text for text in self.texts]
            lines = int(self.manifest["train"]["lines"])
            counts = process_chunks("select pairs", inputs, outputs, function, self.pool, lines, self.steps.key)
            removed = {reason: counts[reason] for reason in reasons(self.settings)}
            kept = {name: counts[name] for name in ("distilled", "original")}
            return {"raw_lines": lines, "lines": sum(kept.values()), **kept, "removed": removed}

        inputs = {**files, TRANSLATIONS: self.steps.hashes[TRANSLATIONS]}
        counts = self.steps.run("select", self.settings.selection(), inputs, self.texts, action)
        if not counts["distilled"]:
            raise SharingError(
                f"--out {self.steps.directory}: the filters removed all pairs ({_listed(counts['removed'])}); "
                "change --filter, --max-ratio or --min-bleu"
            )
        return counts

    def _manifest(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in self.manifest.items() if key not in ("steps", "files", "train", "command")}
        data = os.path.basename(os.path.abspath(self.teacher.data))
        teacher = {"name": self.teacher.files.name, "data": data, **self.identity}
        record = {"teacher": teacher, **self.settings.translation(), **self.settings.selection()}
        return {**kept, "train": dict(counts), "distillation": record}

    def _report(self, manifest: Mapping[str, Any]) -> None:
        train = manifest["train"]
        removed = f" (removed: {_listed(train['removed'])})" if any(train["removed"].values()) else ""
        original = f" and {train['original']:,} original pairs" if train["original"] else ""
        done = f"{len(self.steps.ran)} steps done" if self.steps.ran else "nothing to do"
        say(console, f"{self.steps.directory}: train {train['distilled']:,} distilled{original}{removed}; {done}")


def _listed(removed: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in removed.items() if count)
