"""The files of a model at one of its depths."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from fairseq_sharing.decoding.model_files import ModelFiles
from fairseq_sharing.depths.settings import DepthRequest
from fairseq_sharing.errors import SharingError


@contextmanager
def at_depth(files: ModelFiles, request: DepthRequest) -> Iterator[ModelFiles]:
    """Write the checkpoints of a model at a depth to a temporary folder.

    Args:
        files: the files of the model.
        request: the depth; without one, the files are yielded unchanged.

    Yields:
        Files that exist as long as the context.

    Raises:
        SharingError: the model is exported, was not trained at this depth, or has no such depth.
    """
    if not request.given:
        yield files
        return
    if files.exported:
        raise SharingError(f"{files.name}: an exported model has one depth; export the checkpoint with --depth")
    from fairseq_sharing.checkpoints.files import save_atomically
    from fairseq_sharing.depths.checkpoint import load_at_depth

    with TemporaryDirectory(prefix="fairseq-sharing-") as folder:
        written: list[Path] = []
        depth: dict[str, int] | None = None
        for number, path in enumerate(files.checkpoints):
            taken, depth = load_at_depth(path, request)
            written.append(Path(folder) / f"{number}.pt")
            save_atomically(taken, written[-1])
        yield replace(files, checkpoints=tuple(written), depth=depth)


def refuse_several(files: ModelFiles) -> None:
    """Refuse a depth per sentence of a model that is not a single checkpoint, which has no classifier.

    Raises:
        SharingError: the model is exported, or an ensemble.
    """
    if files.exported:
        raise SharingError(
            f"{files.name}: --depth auto: an exported model has one depth; allowed: the run directory or the checkpoint"
        )
    if len(files.checkpoints) > 1:
        raise SharingError(f"{files.name}: --depth auto: is an ensemble; allowed: one run directory or checkpoint")
