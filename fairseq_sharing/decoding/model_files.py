"""Find what a translation needs from the name of a model: checkpoints or an exported folder, and the prepared data."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.direction import (
    Direction,
    direction_of,
    inferred_direction,
    refuse_other_direction,
)
from fairseq_sharing.files import sha256
from fairseq_sharing.preparation import manifest as manifests

logger = logging.getLogger(__name__)

EXPORTED = "model.bin"  # the file by which a folder is known as an exported model


@dataclass(frozen=True)
class ModelFiles:
    """Where a model and the rules of its text are.

    Attributes:
        name: the model as the user named it.
        checkpoints: one fairseq checkpoint, or several that translate together; none of an exported model.
        exported: folder of an exported model.
        manifest: directory with the manifest.json by which text is prepared; None where there is none.
        dictionaries: directory of the dictionaries, for checkpoints.
        languages: language code of each side ("source", "target").
        max_tokens: subwords of a source and of a target that an exported model reads and writes at most, by side.
    """

    name: str
    checkpoints: tuple[Path, ...] = ()
    exported: Path | None = None
    manifest: Path | None = None
    dictionaries: Path | None = None
    languages: dict[str, str] | None = None
    max_tokens: dict[str, int] | None = None


def find_model(name: str, data: Path | None, console: Console) -> ModelFiles:
    """Find the files of a model.

    Args:
        name: a run directory of ``fairseq-sharing train`` (its last checkpoints are averaged, as ``evaluate`` does),
            a checkpoint, several as fairseq writes them (``a.pt:b.pt``), or an exported folder.
        data: prepared data directory; None for the one that the model was trained on.
        console: where averaging is reported.

    Raises:
        SharingError: there is no such model, or its data have moved.
    """
    path = Path(name)
    if (path / EXPORTED).is_file():
        return _exported(path, data)
    if path.is_dir():
        return _run(path, data, console)
    paths = (path,) if path.exists() else tuple(Path(part) for part in name.split(":"))
    for part in paths:
        if not part.is_file():
            raise SharingError(f"{part}: no such run directory, checkpoint or exported model")
    return _checkpoints(name, paths, data)


def _exported(path: Path, data: Path | None) -> ModelFiles:
    manifest = read_manifest(path, ("source_lang", "target_lang", "max_tokens"))
    if manifest is None:
        raise SharingError(f"{path}: has no manifest.json; allowed: a folder made by fairseq-sharing export")
    if data is not None:
        raise SharingError(f"--data {data}: {path} has all that it needs; leave --data out")
    _refuse_damaged(path, manifest)
    return ModelFiles(
        str(path),
        exported=path,
        manifest=path if "tokenizer" in manifest else None,
        languages=_languages(manifest),
        max_tokens=manifest["max_tokens"],
    )


def _refuse_damaged(folder: Path, manifest: dict[str, Any]) -> None:
    """Compare the files of an exported model with the checksums of its manifest."""
    checksums = manifest.get("sha256")
    if checksums is None:
        logger.warning(f"{folder}: its files cannot be checked, manifest.json has no sha256; export the model again")
        return
    for name, checksum in checksums.items():
        file = folder / Path(name).name
        if not file.is_file() or sha256(file) != checksum:
            raise SharingError(f"{file}: missing, or not the file that was exported; export the model again")


def _run(path: Path, data: Path | None, console: Console) -> ModelFiles:
    from fairseq_sharing.evaluation.settings import EvaluationSettings
    from fairseq_sharing.experiment.run_directory import RunDirectory

    run = RunDirectory(path)
    if not run.config_file.is_file():
        raise SharingError(
            f"{path}: neither a run directory (config.yaml) nor an exported model ({EXPORTED}); "
            "allowed: those, or a checkpoint file"
        )
    settings = EvaluationSettings.of(run.config().get("evaluate", {}))
    data = data or Path(run.record().get("data", ""))
    manifest = read_manifest(data)
    if manifest is None:
        raise SharingError(f"{data / 'manifest.json'}: no such file; name the prepared data directory with --data")
    if not manifest.get("target_lang"):
        raise SharingError(f"{path}: was trained as a language model; allowed: translation models")
    refuse_other_direction(run.direction(), direction_of(manifest, data / "manifest.json"), path, data)
    return ModelFiles(
        str(path),
        checkpoints=(_average(run, settings.average_last, console),),
        manifest=data,
        dictionaries=data / "bin",
        languages=_languages(manifest),
    )


def _average(run: Any, count: int, console: Console) -> Path:
    """Find the average that ``evaluate`` makes, or make it as ``evaluate`` does: in one process at a time."""
    from fairseq_sharing.evaluation.averages import average_last_epochs, finished_average
    from fairseq_sharing.evaluation.steps import Steps

    if (averaged := finished_average(run, count, console)) is not None:
        return averaged
    with run.evaluating():
        averaged, *_ = average_last_epochs(run, count, Steps(run.steps_file), console)
    return averaged


def _checkpoints(name: str, paths: tuple[Path, ...], data: Path | None) -> ModelFiles:
    from fairseq_sharing.checkpoints.arguments import task_arguments
    from fairseq_sharing.checkpoints.files import load_checkpoint

    trained: Direction | None = None
    for path in paths:
        task = task_arguments(load_checkpoint(path))
        if "source_lang" not in task or task.get("lang_pairs"):
            kind = task.get("_name") or task.get("task")
            raise SharingError(f"{path}: was trained for the task {kind}; allowed: translation models")
        stored = direction_of(task, path)
        if trained and stored and stored != trained:
            raise SharingError(
                f"{path}: was trained for {'-'.join(stored)}, {paths[0]} for {'-'.join(trained)}; "
                "allowed: models of one direction"
            )
        trained = trained or stored
    trained_on = Path(str(task.get("data") or "").split(":")[0])
    # The data of prepare have their binarized part in bin; --data may also name what fairseq-preprocess made.
    binarized = data or trained_on
    prepared = binarized if data is not None else trained_on.parent
    if (manifest := read_manifest(prepared)) is not None:
        binarized, direction = prepared / "bin", direction_of(manifest, prepared / "manifest.json")
        refuse_other_direction(trained, direction, name, prepared)
    else:
        # fairseq-train stores only the languages that it was given; others it infers, at every start.
        direction = trained or inferred_direction(binarized)
    if direction is None:
        raise SharingError(
            f"{name}: its languages are not stored, and no file in {binarized} names them; "
            "name the prepared data directory with --data"
        )
    return ModelFiles(
        name,
        checkpoints=paths,
        manifest=prepared if manifest is not None else None,
        dictionaries=binarized,
        languages=dict(zip(("source", "target"), direction, strict=True)),
    )


def read_manifest(directory: Path, needed: tuple[str, ...] = ("source_lang", "target_lang")) -> dict[str, Any] | None:
    """Read the manifest of a prepared data directory or an exported model; None where there is none.

    Args:
        directory: the directory.
        needed: keys that the manifest must have.

    Raises:
        SharingError: it is damaged, lacks a key, or preparation of the directory has not finished.
    """
    return manifests.read_manifest(directory, needed) or None


def _languages(manifest: dict[str, Any]) -> dict[str, str]:
    return {side: manifest[f"{side}_lang"] for side in ("source", "target")}
