"""Hypotheses beside a result: detokenized, one per line, compressed, with the file names of WMT."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import atomic_write, inside, read_lines

FOLDER = "hypotheses"


def fingerprint(hypotheses: Sequence[str]) -> str:
    """Return the SHA-256 of translations written one per line."""
    return hashlib.sha256(_text(hypotheses)).hexdigest()


def keep(hypotheses: Sequence[str], folder: Path, test: str, direction: tuple[str, str], system: str) -> dict[str, str]:
    """Write the translations of a test set.

    Equal translations give equal files: gzip's time stamp is 0.

    Args:
        hypotheses: one translation per segment, without line feeds.
        folder: the folder of the result file.
        test: the test set.
        direction: source and target language.
        system: ``<run>-seed<seed>``.

    Returns:
        The fields of the result: ``hypotheses`` (path relative to the folder) and ``hypothesis_sha256`` (of the text).
    """
    source, target = direction
    name = f"{FOLDER}/{test}.{source}-{target}.hyp.{system}.{target}.gz"
    with atomic_write(inside(folder, name)) as file:
        file.write(gzip.compress(_text(hypotheses), mtime=0))
    return {"hypotheses": name, "hypothesis_sha256": fingerprint(hypotheses)}


def read_kept(score: Mapping[str, Any], folder: Path) -> list[str]:
    """Read the translations of a scored test set.

    Args:
        score: the fields of the test set in a result file.
        folder: the folder of the result file.

    Raises:
        SharingError: the file is missing or damaged, or it does not contain the translations of the result.
    """
    path = inside(folder, score["hypotheses"])
    hypotheses = list(read_lines(path))
    if fingerprint(hypotheses) != score.get("hypothesis_sha256"):
        raise SharingError(
            f"{path}: not the translations of the result (its SHA-256 differs from hypothesis_sha256); "
            "allowed: the file that evaluate wrote with the result"
        )
    return hypotheses


def _text(hypotheses: Sequence[str]) -> bytes:
    return "".join(line + "\n" for line in hypotheses).encode()
