"""The teacher of sequence-level distillation: its checkpoints, its training data, and its export to CTranslate2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from fairseq_sharing.decoding.ctranslate2_engine import CTranslate2Engine, import_ctranslate2
from fairseq_sharing.decoding.model_files import ModelFiles, find_model
from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.dictionaries import dictionary_hashes
from fairseq_sharing.files import sha256
from fairseq_sharing.terminal import Console, say

_ENGINE_PACKAGES = {"ctranslate2": ("ctranslate2",), "fairseq": ("fairseq-fixed", "torch")}


@dataclass(frozen=True)
class Teacher:
    """A model or an ensemble that translates its own training data.

    Attributes:
        files: the checkpoints; after the export also the exported folder.
        data: the prepared data directory.
        engine: ``fairseq`` or ``ctranslate2``.
        device: ``cpu`` or ``cuda``.
    """

    files: ModelFiles
    data: Path
    engine: str
    device: str

    def identity(self) -> dict[str, Any]:
        """Return what determines its translations: hashes of the checkpoints, engine, versions and device."""
        return {
            "checkpoints": [sha256(path) for path in self.files.checkpoints],
            "versions": {name: metadata.version(name) for name in _ENGINE_PACKAGES[self.engine]},
            "device": self.device,
        }

    def exported(self, folder: Path, console: Console) -> Teacher:
        """Return the teacher with its CTranslate2 model, which is exported and checked if the folder does not exist.

        Args:
            folder: a folder for this model only; it is complete if it exists.
            console: reports the export.

        Raises:
            SharingError: CTranslate2 does not support the model.
        """
        if self.engine != "ctranslate2":
            return self
        if not folder.is_dir():
            from fairseq_sharing.decoding.ctranslate2_export import export

            made = export(self.files, folder, card=False)
            say(
                console,
                f"exported {self.files.name} to CTranslate2 in {folder} until its translations are complete "
                f"(largest difference from fairseq: {made.difference.largest:.1g})",
            )
        found = find_model(str(folder), None, console)
        return replace(self, files=replace(self.files, exported=folder, max_tokens=found.max_tokens))

    def load(self, seed: int | None = None) -> Any:
        """Return the engine, with one thread; kept until another teacher is loaded in this process.

        Args:
            seed: seed of the sampling; None for a search without random numbers.
        """
        if seed is not None and self.engine == "ctranslate2":
            # CTranslate2 seeds a thread when it first samples, so each seed needs new threads.
            import_ctranslate2().set_random_seed(seed)
            return self._make_engine()
        if not _kept or _kept[0][0] != self:
            _kept[:] = [(self, self._make_engine())]
        if seed is not None:
            import torch

            torch.manual_seed(seed)  # after loading, which draws initial weights
        return _kept[0][1]

    def _make_engine(self) -> Any:
        if self.engine == "ctranslate2":
            assert self.files.exported is not None
            assert self.files.max_tokens is not None
            return CTranslate2Engine(self.files.exported, self.files.max_tokens, None, 1, self.device)
        from fairseq_sharing.decoding.fairseq_engine import FairseqEngine

        return FairseqEngine(self.files, 1, self.device)


# The last teacher of this process and its engine.
_kept: list[tuple[Teacher, Any]] = []


def find_teacher(
    models: Sequence[str], data: Path | None, engine: str | None, device: str, console: Console
) -> Teacher:
    """Find the checkpoints of a teacher and the data that they were trained on.

    Args:
        models: run directories or checkpoints; several form an ensemble.
        data: prepared data directory; None for that of the first model.
        engine: None for ``ctranslate2``, or ``fairseq`` for an ensemble.
        device: ``cpu`` or ``cuda``.
        console: reports averaging.

    Raises:
        SharingError: there is no such model, the models differ in their dictionaries or languages, or the data was
            not prepared with ``fairseq-sharing prepare``.
    """
    found = [find_model(model, data, console) for model in models]
    trained_on: list[tuple[dict[str, str], dict[str, str]]] = []
    for model, files in zip(models, found, strict=True):
        if files.exported is not None:
            raise SharingError(f"{model}: is a CTranslate2 model; allowed: a run directory or a checkpoint")
        if files.manifest is None:
            raise SharingError(
                f"{model}: its data has no manifest.json; give a directory made by fairseq-sharing prepare with --data"
            )
        trained_on.append((files.languages, dictionary_hashes(files.manifest)))
        if trained_on[-1] != trained_on[0]:
            raise SharingError(
                f"{model}: its languages or dictionaries are not those of {models[0]}; "
                "allowed: teachers trained on the same prepared data"
            )
    checkpoints = tuple(path for files in found for path in files.checkpoints)
    engine = engine or ("ctranslate2" if len(checkpoints) == 1 else "fairseq")
    if engine == "ctranslate2" and len(checkpoints) > 1:
        raise SharingError(f"--engine ctranslate2: {len(checkpoints)} checkpoints; allowed: one, or --engine fairseq")
    assert found[0].manifest is not None
    files = replace(found[0], name=" ".join(models), checkpoints=checkpoints)
    return Teacher(files, found[0].manifest, engine, device)
