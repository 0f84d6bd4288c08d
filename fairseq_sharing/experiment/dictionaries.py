"""The dictionaries of a run. With others, even of the same size, words would get wrong embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import sha256


def dictionary_hashes(data: Path) -> dict[str, str]:
    """Return the SHA-256 of each dictionary of a data directory, by file name."""
    return {file.name: sha256(file) for file in sorted((data / "bin").glob("dict*.txt"))}


def refuse_other_dictionaries(recorded: Mapping[str, str] | None, data: Path, model: object) -> None:
    """Refuse data whose dictionaries are not those that a model was trained with.

    Args:
        recorded: hashes from the run's record; None for runs that recorded none.
        data: the data directory.
        model: the run, for the error message.

    Raises:
        SharingError: a dictionary differs or is missing.
    """
    if recorded and recorded != dictionary_hashes(data):
        raise SharingError(
            f"{data}: its dictionaries are not those that {model} was trained with; allowed: data prepared with the "
            "same subwords and dictionaries"
        )
