"""Read and check the manifest of a data directory or of an exported model."""

from __future__ import annotations

import fcntl
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fairseq_sharing.documents import Schema, is_count, is_flag, is_text, list_of, mapping_of, read_json
from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import inside
from fairseq_sharing.preparation.text import SUBWORDS, TOKENIZERS

MANIFEST = "manifest.json"
"""Exists only if the data directory is complete."""

UNFINISHED = "manifest.unfinished.json"
"""Records the finished steps while a data directory is being made or updated."""

LOCK = ".lock"
"""Locked while preparation is running."""

PREPARE, DISTILL = "prepare", "distill"
"""The commands that make data directories; a manifest names its command unless it is prepare."""


def read_manifest(folder: Path, needed: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read the manifest of a data directory or of an exported model.

    Args:
        folder: the directory.
        needed: required keys.

    Returns:
        The manifest; empty if there is none, such as in the output of fairseq-preprocess.

    Raises:
        SharingError: preparation is running or unfinished, or the manifest is damaged or lacks a key.
    """
    refuse_unfinished(folder)
    file = folder / MANIFEST
    if not file.is_file():
        return {}
    manifest = load_manifest(file)
    for key in needed:
        if key not in manifest:
            raise SharingError(f"{file}: missing {key}; allowed: a manifest of prepare or export")
    return manifest


def refuse_unfinished(folder: Path) -> None:
    """Refuse a data directory while it is being prepared, or if its preparation has not finished.

    Raises:
        SharingError: preparation is running or unfinished.
    """
    if _is_locked(folder / LOCK):
        raise SharingError(
            f"{folder}: fairseq-sharing {command_of(folder)} is running in this folder; wait until it has finished"
        )
    if not (folder / MANIFEST).is_file() and (folder / UNFINISHED).is_file():
        raise SharingError(
            f"{folder}: its preparation has not finished; re-run the same fairseq-sharing {command_of(folder)} command"
        )


def command_of(folder: Path) -> str:
    """Return the command that makes a data directory: prepare, unless its manifest names another one."""
    for name in (UNFINISHED, MANIFEST):
        if (folder / name).is_file():
            return str(load_manifest(folder / name).get("command", PREPARE))
    return PREPARE


def load_manifest(file: Path) -> dict[str, Any]:
    """Parse a manifest and check its fields.

    Args:
        file: the manifest of a finished or unfinished directory.

    Returns:
        Its content.

    Raises:
        SharingError: the file is not a manifest, or it contains a path outside of its folder.
    """
    manifest = read_json(file, _FIELDS, "a manifest of prepare or export")
    for path in _paths(manifest):
        try:
            inside(file.parent, path)
        except SharingError as error:
            raise SharingError(f"{file}: {error}") from None
    return manifest


def _is_locked(lock: Path) -> bool:
    if not lock.is_file():
        return False
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _paths(manifest: Mapping[str, Any]) -> Iterator[str]:
    yield from manifest.get("files", ())
    yield from manifest.get("begun", ())
    for record in manifest.get("steps", {}).values():
        yield from record["outputs"]
    for test in manifest.get("tests", ()):
        yield from (test[side] for side in ("source", "reference") if side in test)
    if (model := manifest.get("subword", {}).get("model")) is not None:
        yield model


def _is_name(value: object) -> bool:
    """Return whether a value can be part of a file name."""
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.@-]*", value) is not None


def _is_step(value: object) -> bool:
    return (
        isinstance(value, dict)
        and all(isinstance(value.get(key), dict) for key in ("settings", "inputs", "outputs", "result"))
        and _are_digests(value["outputs"])
    )


def _is_test(value: object) -> bool:
    return (
        isinstance(value, dict)
        and _is_name(value.get("name"))
        and _is_name(value.get("subset"))
        and is_count(value.get("segments"))
        and isinstance(value.get("source"), str)
        and isinstance(value.get("reference", ""), str)
    )


_are_digests = mapping_of(is_text)


def _is_choice(value: object, names: tuple[str, ...]) -> bool:
    return isinstance(value, dict) and value.get("name") in names


_FIELDS: Schema = {
    "command": (lambda value: value in (PREPARE, DISTILL), f"{PREPARE} or {DISTILL}"),
    "dataset": (is_text, "a name"),
    "artificial": (is_flag, "true or false"),
    "source_lang": (_is_name, "a language code"),
    "target_lang": (lambda value: value == "" or _is_name(value), "a language code; empty for a language model"),
    "tokenizer": (lambda value: _is_choice(value, TOKENIZERS), f"a mapping with name: {' or '.join(TOKENIZERS)}"),
    "subword": (
        lambda value: _is_choice(value, SUBWORDS) and is_text(value.get("model", "")),
        f"a mapping with name: {' or '.join(SUBWORDS)}, and model: FILE",
    ),
    "tests": (list_of(_is_test), "a list of mappings with name, subset, segments, source and reference"),
    "files": (_are_digests, "a mapping from file to SHA-256"),
    "steps": (mapping_of(_is_step), "a mapping from step to its record"),
    "begun": (list_of(is_text), "a list of files"),
    "max_tokens": (
        lambda value: isinstance(value, dict) and all(is_count(value.get(side)) for side in ("source", "target")),
        "a number for source and target",
    ),
    "sha256": (_are_digests, "a mapping from file to SHA-256"),
}
