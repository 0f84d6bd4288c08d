"""Admin: a residual connection whose weight starts from the variance of what it adds, for deep post-norm stacks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class AdminResidual:
    """Mixin for a fairseq Transformer layer: post-norm sub-layer x <- LN(x * w + f(x)).

    One weight vector a sub-layer, trained, and never shared: it belongs to the depth, not to the parameter set.

    Shape:
        residual_weight: (sub-layers, embed_dim).

    Source: Liu et al. 2020, "Understanding the Difficulty of Training Transformers", Section 4.2.
    """

    # Told to the tying: what of a layer no map shares.
    depth_parameters = ("residual_weight",)
    _profile: VarianceProfile | None = None

    def add_residual_weight(self, num_sublayers: int, embed_dim: int) -> None:
        """Give the layer its weights, 1 as in a plain residual connection."""
        self.residual_weight = nn.Parameter(torch.ones(num_sublayers, embed_dim))
        self._sublayer = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer from its first sub-layer, also after a pass that ended early, as when memory ran out."""
        self._sublayer = 0
        return super().forward(*args, **kwargs)  # type: ignore[misc]

    def residual_connection(self, x: Tensor, residual: Tensor) -> Tensor:
        """Add what a sub-layer made to what it was given.

        fairseq calls this once a sub-layer, in order, and does not say which: the layer counts.

        Args:
            x: f(x), (T, B, C).
            residual: x, (T, B, C).
        """
        weight = self.residual_weight[self._sublayer]
        if self._profile is not None:
            weight = self._profile.next_weight(weight, x, residual)
        self._sublayer = (self._sublayer + 1) % len(self.residual_weight)
        return residual * weight + x


class VarianceProfile:
    """Walks the sub-layers of a stack in order and sets their weights from the variances it meets.

    r starts at 1; each sub-layer gets w = r, then r <- sqrt(Var[x * w] + Var[f(x)]).
    """

    def __init__(self) -> None:
        self._r = 1.0

    def next_weight(self, weight: Tensor, x: Tensor, residual: Tensor) -> Tensor:
        """Set a sub-layer's weight to r and take its variances, over all elements of the batch, into r."""
        with torch.no_grad():
            weight.fill_(self._r)
            variance = (residual.float() * weight.float()).var(unbiased=False) + x.float().var(unbiased=False)
            self._r = math.sqrt(variance.item())
        return weight


@contextmanager
def profiling(stacks: Iterable[nn.Module]) -> Iterator[None]:
    """Set the residual weights of stacks from the forward pass that runs inside; each stack starts at r = 1."""
    layers: list[Any] = []
    for stack in stacks:
        profile = VarianceProfile()
        own: list[Any] = list(stack.get_submodule("layers").children())
        for layer in own:
            layer._profile = profile
        layers += own
    try:
        yield
    finally:
        for layer in layers:
            layer._profile = None


def set_closed_form(layers: Iterable[Any]) -> None:
    """Set the residual weights of a stack without any data: w = sqrt(i) for sub-layer i, counted from 1.

    What profiling gives when the LayerNorms' outputs and all f(x) have variance 1.
    """
    number = 0
    for layer in layers:
        with torch.no_grad():
            for weight in layer.residual_weight:
                number += 1
                weight.fill_(math.sqrt(number))
