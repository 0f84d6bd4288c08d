"""Average the weights of checkpoints and keep their ties."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import torch

from fairseq_sharing.checkpoints.files import load_checkpoint, write_plain
from fairseq_sharing.checkpoints.finite_weights import refuse_nonfinite_weights
from fairseq_sharing.checkpoints.recorded_state import EXTRA_STATE, record, recorded_extra, recorded_sharing
from fairseq_sharing.checkpoints.sharing_state import layer_aliases
from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import atomic_write
from fairseq_sharing.layer_map import StackSharing, relabel

Sharing = dict[str, StackSharing]


def average_checkpoints(paths: Iterable[str | os.PathLike[str]], output: str | os.PathLike[str]) -> None:
    """Write the mean of several checkpoints' models, without optimizer state.

    If a schedule changed the map between the checkpoints, layers are tied in the mean only if they are tied in every
    checkpoint.

    Args:
        paths: checkpoints of one run, or of runs with equal maps and sizes.
        output: the file to write. The configuration in it is that of the last path; ``averaged`` names the files.

    Raises:
        SharingError: no path, an unreadable file, different tensors, weights that are NaN or infinite, or maps that
            differ without a schedule.
    """
    paths = list(paths)
    if not paths:
        raise SharingError("average requires at least one checkpoint, got none")
    total: dict[str, torch.Tensor] = {}
    common: Sharing = {}
    always_borrowed: set[str] = set()
    first, differing, scheduled = paths[0], False, False
    for path in paths:
        checkpoint = load_checkpoint(path)
        model = checkpoint["model"]
        refuse_nonfinite_weights(model, path)
        tensors = {name: value for name, value in model.items() if torch.is_tensor(value)}
        sharing = recorded_sharing(model)
        borrowed = layer_aliases(tensors, sharing)
        scheduled = scheduled or bool(recorded_extra(model).get("map_changed_by"))
        if path == first:
            common, always_borrowed = sharing, set(borrowed)
        elif sharing != common:
            if not scheduled or _size(sharing) != _size(common):
                raise SharingError(f"{path}: its layer map differs from that of {first}; allowed: equal maps")
            if not differing:
                _fill(total, layer_aliases(total, common))
            common, differing = _common(common, sharing), True
        if differing:
            _fill(tensors, borrowed)
            always_borrowed &= set(borrowed)
        shapes = {name: value.shape for name, value in tensors.items()}
        if total and shapes != {name: value.shape for name, value in total.items()}:
            name = sorted(set(shapes.items()) ^ {(n, v.shape) for n, v in total.items()})[0][0]
            raise SharingError(
                f"{path}: tensor {name} differs in size from that of {first}, or only one of them has it"
            )
        for name, value in tensors.items():
            # Double precision: the mean does not depend on the order of the files.
            total[name] = total[name] + value.double() if name in total else value.double()
    model.update({name: (total[name] / len(paths)).to(value.dtype) for name, value in tensors.items()})
    if differing:
        for name in always_borrowed:
            stack, _, rest = name.partition(".layers.")
            layer, layer_map = int(rest.split(".")[0]), common[stack].layer_map
            if layer_map.index(layer_map[layer]) != layer:
                del model[name]
        model[EXTRA_STATE] = {**model[EXTRA_STATE], **record(common), "map_changed_by": "averaging over changes"}
    checkpoint.pop("last_optimizer_state", None)
    checkpoint["averaged"] = [os.path.basename(path) for path in paths]
    with atomic_write(Path(output)) as file:
        write_plain(checkpoint, file, output)


def _size(sharing: Sharing) -> dict[str, Any]:
    """Return what no schedule changes: the number of layers, the scope and the component maps of each stack."""
    return {name: (len(stack.layer_map), stack.scope, stack.components) for name, stack in sharing.items()}


def _common(one: Sharing, other: Sharing) -> Sharing:
    """Return the sharing that both have in common."""
    maps = {name: relabel(zip(one[name].layer_map, other[name].layer_map, strict=True)) for name in one}
    return {name: StackSharing(layer_map, one[name].scope) for name, layer_map in maps.items()}


def _fill(tensors: MutableMapping[str, torch.Tensor], aliases: Mapping[str, str]) -> None:
    tensors.update({name: tensors[owner] for name, owner in aliases.items()})
