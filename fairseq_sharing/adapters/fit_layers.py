"""Fit the adapters of a stack's depths to trained layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fairseq_sharing.adapters.effective import ATTRIBUTE
from fairseq_sharing.adapters.kinds import DepthKinds
from fairseq_sharing.adapters.low_rank import fit_adapters
from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import StackSharing
from fairseq_sharing.parameter_sets import part_of

_SEED = 1


def fit_layers(
    stack: str,
    sharing: StackSharing,
    kinds: DepthKinds,
    layers: Sequence[Mapping[str, Tensor]],
    values: Mapping[str, Tensor],
    iterations: int = 0,
) -> dict[str, Tensor]:
    """Fit the adapters of a stack so that each depth approximates the trained layer of the same number.

    Args:
        stack: name of the stack.
        sharing: its map and scope.
        kinds: the depth parameters.
        layers: tensors of the trained layers by name.
        values: initial values of the parameter sets, under the names of the owners.
        iterations: number of alternations between the shared matrices and the adapters.

    Returns:
        Adapters, factors of 1, and the shared matrices that the iterations changed, by name.

    Raises:
        SharingError: a depth has no trained layer.
    """
    depths = range(len(sharing.layer_map))
    if (kinds.rank or kinds.scale) and len(depths) > len(layers):
        raise SharingError(
            f"{kinds.flags}: depth {len(layers)} of the {stack} has no trained layer to fit; "
            f"allowed: at most {len(layers)} layers"
        )
    fitted: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(_SEED)

    def name_of(depth: int, name: str) -> str:
        return f"{stack}.layers.{depth}.{name}"

    for matrix in kinds.adapted():
        weight = f"{matrix}.weight"
        if weight not in layers[0]:
            continue
        component = sharing.of_component(part_of(weight))
        labels = component.labels if component else tuple(depths)
        for owner in depths:
            uses = [depth for depth in depths if labels[depth] == labels[owner]]
            if uses[0] != owner:
                continue
            shared, factors = fit_adapters(
                [layers[d][weight] for d in uses], values[name_of(owner, weight)], kinds.rank, iterations, generator
            )
            fitted[name_of(owner, weight)] = shared
            for depth, (a, b) in zip(uses, factors, strict=True):
                fitted[name_of(depth, f"{ATTRIBUTE}.lora.{matrix}.a")] = a
                fitted[name_of(depth, f"{ATTRIBUTE}.lora.{matrix}.b")] = b
    for matrix in kinds.scaled():
        for depth in depths:
            scaled = layers[depth].get(f"{matrix}.weight")
            if scaled is not None:
                size = scaled.shape[1 if matrix == "fc2" else 0]
                fitted[name_of(depth, f"{ATTRIBUTE}.scale.{matrix}")] = torch.ones(size, dtype=scaled.dtype)
    return fitted
