"""Find the files of a model by its name: checkpoints or an exported folder, and the prepared data."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.dictionaries import refuse_other_dictionaries
from fairseq_sharing.experiment.direction import (
    KEYS,
    Direction,
    direction_of,
    inferred_direction,
    refuse_other_direction,
)
from fairseq_sharing.files import sha256
from fairseq_sharing.preparation.manifest import MANIFEST, read_manifest
from fairseq_sharing.terminal import Console

logger = logging.getLogger(__name__)

SEVERAL_DIRECTIONS = "translation_multi_simple_epoch"  # fairseq's task for them
EXPORTED = "model.bin"  # its presence marks a folder as an exported model


@dataclass(frozen=True)
class ModelFiles:
    """Paths of a model and of its text preparation.

    Attributes:
        name: the model as given by the user.
        checkpoints: one fairseq checkpoint, or several for an ensemble; empty for an exported model.
        exported: folder of an exported model.
        manifest: directory with the manifest.json for text preparation; None if there is none.
        dictionaries: directory of the dictionaries (checkpoints only).
        languages: language code of each side ("source", "target").
        max_tokens: maximum number of subwords of a source and of a target, by side (exported models only).
        depth: the depth of each stack that the checkpoints were reduced to; None for all layers.
    """

    name: str
    checkpoints: tuple[Path, ...] = ()
    exported: Path | None = None
    manifest: Path | None = None
    dictionaries: Path | None = None
    languages: dict[str, str] = field(default_factory=dict)
    max_tokens: dict[str, int] | None = None
    depth: dict[str, int] | None = None


def checkpoint_file(path: Path) -> Path:
    """Return the checkpoint of a trained model: the file itself, or the averaged checkpoint of a run directory.

    The run may be a language model, and its data may be gone.

    Raises:
        SharingError: the directory is no run with checkpoints.
    """
    from fairseq_sharing.evaluation.settings import EvaluationSettings
    from fairseq_sharing.experiment.run_directory import RunDirectory

    run = RunDirectory(path)
    if run.config_file.is_file():
        return _average(run, EvaluationSettings.of_run(run.config()).average_last, Console(stderr=True))
    if path.is_dir():
        (path,) = find_model(str(path), None, Console(stderr=True)).checkpoints or (path,)
    return path


def find_model(name: str, data: Path | None, console: Console) -> ModelFiles:
    """Find the files of a model.

    Args:
        name: a run directory of ``fairseq-sharing train`` (its last checkpoints are averaged, as ``evaluate`` does),
            a checkpoint, several as fairseq writes them (``a.pt:b.pt``), or an exported folder.
        data: prepared data directory; None for the model's training data.
        console: reports averaging.

    Raises:
        SharingError: there is no such model, or its data has moved.
    """
    path = Path(name)
    if (path / EXPORTED).is_file():
        return _exported(path, data)
    if path.is_dir():
        return _run(path, data, console)
    paths = (path,) if path.exists() else tuple(Path(part) for part in name.split(":"))
    for part in paths:
        if not part.is_file():
            raise SharingError(f"{part}: not found; allowed: the path of a trained model")
    return _checkpoints(name, paths, data)


def _exported(path: Path, data: Path | None) -> ModelFiles:
    manifest = read_manifest(path, (*KEYS, "max_tokens"))
    if not manifest:
        raise SharingError(f"{path}: no manifest.json; allowed: a folder written by export --to ctranslate2")
    if data is not None:
        raise SharingError(f"--data {data}: the exported model {path} includes its data; omit --data")
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
        logger.warning(f"{folder}: cannot verify the files because manifest.json has no sha256; export the model again")
        return
    read = {EXPORTED, "config.json", *(file.name for file in folder.glob("*vocabulary*"))}
    if isinstance(subwords := manifest.get("subword", {}).get("model"), str):
        read.add(Path(subwords).name)
    if unchecked := sorted(read - {Path(name).name for name in checksums}):
        raise SharingError(f"{folder / MANIFEST}: sha256 lacks {', '.join(unchecked)}; export the model again")
    for name, checksum in checksums.items():
        file = folder / Path(name).name
        if not file.is_file() or sha256(file) != checksum:
            raise SharingError(f"{file}: missing or changed since the export; export the model again")


def _run(path: Path, data: Path | None, console: Console) -> ModelFiles:
    from fairseq_sharing.evaluation.settings import EvaluationSettings
    from fairseq_sharing.experiment.run_directory import RunDirectory

    run = RunDirectory(path)
    if not run.config_file.is_file():
        raise SharingError(
            f"{path}: neither a run directory (config.yaml) nor an exported model ({EXPORTED}); "
            "allowed: those, or a checkpoint file"
        )
    settings = EvaluationSettings.of_run(run.config())
    data = data or Path(run.record().get("data", ""))
    manifest = read_manifest(data, KEYS)
    if not manifest:
        raise SharingError(f"{data / 'manifest.json'}: no such file; give the prepared data directory with --data")
    if not manifest.get("target_lang"):
        raise SharingError(f"{path}: is a language model; allowed: translation models")
    refuse_other_direction(run.direction(), direction_of(manifest, data / "manifest.json"), path, data)
    refuse_other_dictionaries(run.record().get("dictionaries"), data, path)
    return ModelFiles(
        str(path),
        checkpoints=(_average(run, settings.average_last, console),),
        manifest=data,
        dictionaries=data / "bin",
        languages=_languages(manifest),
    )


def _average(run: Any, count: int, console: Console) -> Path:
    """Find the average that ``evaluate`` makes, or make it in the same way, under the lock of the run."""
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
    directions: set[Direction] = set()  # of a model for several
    for path in paths:
        task = task_arguments(load_checkpoint(path))
        kind = task.get("_name") or task.get("task")
        if "source_lang" not in task or (task.get("lang_pairs") and kind != SEVERAL_DIRECTIONS):
            raise SharingError(f"{path}: was trained for the task {kind}; allowed: translation models")
        directions |= _directions(task)
        stored = next(iter(directions)) if len(directions) == 1 else direction_of(task, path)
        if trained and stored and stored != trained:
            raise SharingError(
                f"{path}: was trained for {'-'.join(stored)}, {paths[0]} for {'-'.join(trained)}; "
                "allowed: models of the same direction"
            )
        trained = trained or stored
    trained_on = Path(str(task.get("data") or "").split(":")[0])
    # prepare writes binarized data to bin; --data may also be the output of fairseq-preprocess.
    binarized = data or trained_on
    prepared = binarized if data is not None else trained_on.parent
    if manifest := read_manifest(prepared, KEYS):
        binarized, direction = prepared / "bin", direction_of(manifest, prepared / "manifest.json")
        refuse_other_direction(trained, direction, name, prepared)
    else:
        # fairseq-train stores only languages given as flags; it infers the others at every start.
        direction = trained or inferred_direction(binarized)
    if direction is None:
        raise SharingError(
            f"{name}: the checkpoint does not contain its languages, and {binarized} has no file that names them; "
            "give the prepared data directory with --data"
        )
    if directions and direction not in directions:
        raise SharingError(
            f"{prepared}: direction {'-'.join(direction)}; {name} was trained for "
            f"{', '.join(sorted(map('-'.join, directions)))}; allowed: data of one of them, with --data"
        )
    return ModelFiles(
        name,
        checkpoints=paths,
        manifest=prepared if manifest else None,
        dictionaries=binarized,
        languages=dict(zip(("source", "target"), direction, strict=True)),
    )


def _directions(task: dict[str, Any]) -> set[Direction]:
    """Return the directions of a model for several; none for any other model."""
    pairs = task.get("lang_pairs") or []
    names = pairs.split(",") if isinstance(pairs, str) else pairs
    return {(source, target) for source, _, target in (name.partition("-") for name in names)}


def _languages(manifest: dict[str, Any]) -> dict[str, str]:
    return {side: manifest[f"{side}_lang"] for side in ("source", "target")}
