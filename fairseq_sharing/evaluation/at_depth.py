"""The averaged checkpoint of a run at one of the model's depths."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq_sharing.depths.settings import DepthRequest, setting_name
from fairseq_sharing.evaluation.steps import Steps
from fairseq_sharing.files import sha256


def reduce_to_depth(
    averaged: Path, inputs: Mapping[str, Any], request: DepthRequest, steps: Steps
) -> tuple[Path, dict[str, int], dict[str, Any]]:
    """Write the checkpoint of a depth beside the average, unless it exists.

    Args:
        averaged: the averaged checkpoint.
        inputs: what identifies it.
        request: the depth.
        steps: the finished steps of the evaluation.

    Returns:
        The checkpoint, the depth of each stack, and the hash of the checkpoint.

    Raises:
        SharingError: the model was not trained at this depth, or has no such depth.
    """
    from fairseq_sharing.checkpoints.files import save_atomically
    from fairseq_sharing.depths.checkpoint import load_at_depth

    taken, setting = load_at_depth(averaged, request)
    reduced = averaged.with_stem(f"{averaged.stem}-{setting_name(setting)}")
    if not steps.is_done(reduced.name, inputs, reduced):
        save_atomically(taken, reduced)
        steps.record(reduced.name, inputs, reduced)
    return reduced, setting, {"checkpoint": sha256(reduced)}
