"""Record the inputs of each output of an evaluation, so that finished steps are skipped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq_sharing.documents import read_json
from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import sha256, write_text


class Steps:
    """The finished steps of a run's evaluation.

    Args:
        file: the file that records them.

    Raises:
        SharingError: the file is not a record of steps.
    """

    def __init__(self, file: Path):
        self._file = file
        self._done: dict[str, dict[str, str]] = {}
        if file.is_file():
            try:
                self._done = read_json(file, {}, "a record of steps")
            except SharingError as error:
                raise SharingError(f"{error}; remove the file to repeat the evaluation") from error

    def is_done(self, step: str, inputs: Mapping[str, Any], output: Path) -> bool:
        """Return whether a step's output exists, is unmodified and was made from these inputs."""
        return output.is_file() and self._done.get(step) == _entry(inputs, output)

    def record(self, step: str, inputs: Mapping[str, Any], output: Path) -> None:
        """Record a finished step."""
        self._done[step] = _entry(inputs, output)
        write_text(self._file, json.dumps(self._done, indent=2) + "\n")


def _entry(inputs: Mapping[str, Any], output: Path) -> dict[str, str]:
    text = json.dumps(inputs, sort_keys=True)
    return {"inputs": hashlib.sha256(text.encode()).hexdigest(), "output": sha256(output)}
