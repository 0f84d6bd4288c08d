"""Reject checkpoints whose arguments describe no model, before one is built from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairseq_sharing.checkpoints.arguments import model_arguments
from fairseq_sharing.checkpoints.recorded_state import recorded_sharing
from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.config import BadKeyError
from fairseq_sharing.experiment.ranges import check_ranges
from fairseq_sharing.layer_map import STACKS

_SIZES = ("layers", "embed_dim", "ffn_embed_dim", "attention_heads")


def refuse_senseless_arguments(checkpoint: Mapping[str, Any]) -> None:
    """Reject sizes that are not numbers, are out of range, or differ from the recorded layer maps.

    Models of other families than Transformers and shared models are not checked: there, sizes can be text.

    Args:
        checkpoint: a checkpoint with its model.

    Raises:
        SharingError: with the argument, its value and the allowed values.
    """
    arguments, sharing = model_arguments(checkpoint), recorded_sharing(checkpoint["model"])
    if not sharing and not str(arguments.get("arch")).startswith("transformer"):
        return
    names = [f"{stack}_{size}" for stack in STACKS for size in _SIZES]
    sizes = {name: arguments[name] for name in names if arguments.get(name) is not None}
    for name, value in sizes.items():
        if type(value) is not int:
            _refuse(name, f"{value!r:.60}; allowed: a whole number")
    for stack, shared in sharing.items():
        name, layers = f"{stack.partition('.')[0]}_layers", len(shared.layer_map)
        if sizes.get(name, layers) != layers:
            _refuse(name, f"{sizes[name]}; allowed: {layers}, the length of its layer map")
    try:
        check_ranges({**sizes, "head_dim": arguments.get("head_dim")})
    except BadKeyError as error:
        raise SharingError(f"the checkpoint's model has {error}") from error


def _refuse(name: str, found: str) -> None:
    raise SharingError(f"the checkpoint's model has train.{name}: {found}")
