"""Run preparation steps, skipping those whose settings, inputs and outputs match the record."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import inside, leftovers, sha256, write_text
from fairseq_sharing.preparation.manifest import LOCK, MANIFEST, PREPARE, UNFINISHED, command_of, load_manifest

_TEMPORARY = (".tmp", ".journal.tmp", ".journal.tmp.tmp", ".lengths.tmp", ".lengths.tmp.tmp")
"""Suffixes of the temporary files that exist next to an output while it is being made."""


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Lock a data directory against a second run.

    Args:
        directory: the directory; created if missing.

    Raises:
        SharingError: another run is using the directory.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with inside(directory, LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SharingError(
                f"--out {directory}: another {command_of(directory)} is running in this directory; wait until it has "
                "finished"
            ) from None
        yield


class ResumableSteps:
    """The steps of a data directory and their records.

    ``manifest.json`` exists only if the directory is complete. While the directory is being made or updated, the
    records are stored under another name, from which a stopped run resumes.

    While a step is running, ``key`` identifies its settings and inputs.

    Args:
        directory: the data directory, locked.
        command: the command that makes it.

    Raises:
        SharingError: the directory contains files but no manifest, so it may be unrelated, or its manifest is damaged
            or names files outside of it, or another command made it.
    """

    def __init__(self, directory: Path, command: str = PREPARE):
        self.directory = directory
        self.ran: list[str] = []
        self.hashes: dict[str, str] = {}
        self.key = ""
        self._finished = directory / MANIFEST
        self._unfinished = directory / UNFINISHED
        self._used: dict[str, Any] = {}
        source = self._finished if self._finished.is_file() else self._unfinished
        if source.is_file():
            self._manifest = load_manifest(source)
            if "steps" not in self._manifest:
                raise SharingError(f"--out {directory}: {source.name} records no steps; give another directory")
        elif set(os.listdir(directory)) - {LOCK, *(path.name for path in leftovers(self._unfinished))}:
            raise SharingError(f"--out {directory}: exists and contains no {MANIFEST}; give a new or empty directory")
        else:
            self._manifest = {}
        if self._manifest and (maker := self._manifest.get("command", PREPARE)) != command:
            raise SharingError(f"--out {directory}: contains data of fairseq-sharing {maker}; give another directory")
        self._command = {} if command == PREPARE else {"command": command}
        self._records: dict[str, Any] = self._manifest.get("steps", {})
        self._begun: set[str] = set(self._manifest.pop("begun", ()))

    @property
    def dataset(self) -> str | None:
        """Name of the dataset in the directory; None if there is none yet."""
        return self._manifest.get("dataset")

    def begin(self) -> None:
        """Mark a new directory as unfinished, so that a run that stops before its first step can be resumed."""
        if not self._finished.is_file():
            self._save()

    def run(
        self,
        name: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str] | list[str],
        outputs: list[str],
        action: Callable[[], Mapping[str, Any]],
    ) -> dict[str, Any]:
        """Run a step unless it is finished.

        Args:
            name: name of the step.
            settings: everything except the inputs that determines the outputs.
            inputs: outputs of earlier steps; for other files, a mapping from name to SHA-256.
            outputs: files that the step writes, relative to the directory.
            action: writes the outputs; its result is recorded.

        Returns:
            The result of the action, from this or an earlier run.
        """
        if not isinstance(inputs, Mapping):
            inputs = {file: self.hashes[file] for file in inputs}
        wanted = json.loads(json.dumps({"settings": settings, "inputs": inputs}))
        record = self._records.get(name)
        if not (
            record
            and {key: record[key] for key in wanted} == wanted
            and record["outputs"].keys() == set(outputs)
            and all(self._hash(file) == digest for file, digest in record["outputs"].items())
        ):
            self.key = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
            for output in outputs:
                for ending in ("", *_TEMPORARY):
                    inside(self.directory, output + ending)
            self._records.pop(name, None)
            self._begun.update(outputs)
            self._save()
            result = dict(action())
            made = {file: sha256(self.directory / file) for file in outputs}
            record = {**wanted, "outputs": made, "result": result}
            self._records[name] = record
            self._save()
            self.ran.append(name)
        self._used[name] = record
        self.hashes.update(record["outputs"])
        return dict(record["result"])

    def finish(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Write the manifest of the complete directory and remove outputs of earlier recipes.

        Args:
            manifest: the manifest without "steps" and "files".

        Returns:
            The complete manifest.
        """
        self._remove_earlier()
        complete = {**manifest, **self._command, "steps": self._used, "files": dict(sorted(self.hashes.items()))}
        complete = json.loads(json.dumps(complete))
        if complete != self._manifest or not self._finished.is_file():
            self._write(self._finished, complete)
        self._unfinished.unlink(missing_ok=True)
        return complete

    def _remove_earlier(self) -> None:
        """Remove outputs of earlier runs that are unchanged and not part of this run, and temporary files."""
        records = [self._manifest.get("files", {}), *(record["outputs"] for record in self._records.values())]
        made = {(file, digest) for record in records for file, digest in record.items()}
        for file, digest in made:
            if file not in self.hashes and self._hash(file) == digest:
                (self.directory / file).unlink()
        for file in self._begun.union(self.hashes, (file for file, _ in made)):
            for ending in _TEMPORARY:
                temporary = self.directory / (file + ending)
                if _is_regular(temporary):
                    temporary.unlink()
            for temporary in leftovers(self.directory / file):
                temporary.unlink()
        for manifest in (self._finished, self._unfinished):
            for temporary in leftovers(manifest):
                temporary.unlink()

    def _save(self) -> None:
        content = {**self._manifest, **self._command, "steps": self._records, "begun": sorted(self._begun)}
        self._write(self._unfinished, content)
        self._finished.unlink(missing_ok=True)

    def _write(self, path: Path, content: Mapping[str, Any]) -> None:
        write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def _hash(self, file: str) -> str | None:
        path = inside(self.directory, file)
        return sha256(path) if _is_regular(path) else None


def _is_regular(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()
