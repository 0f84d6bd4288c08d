"""Admin: residual connections with weights initialized from variances, for deep post-norm stacks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class AdminResidual:
    """Mixin for a fairseq Transformer layer with post-norm sub-layers x <- LN(x * w + f(x)).

    Each sub-layer has one trained weight vector. It is never shared: it belongs to the depth, not to the parameter set.

    Shape:
        residual_weight: (sub-layers, embed_dim).

    Source: Liu et al. 2020, "Understanding the Difficulty of Training Transformers", Section 4.2.
    """

    # Parameters that are never tied; see tying.shared_names.
    depth_parameters = ("residual_weight",)
    # Whether the layer ends with a feed-forward sub-layer.
    has_ffn = True
    _profile: VarianceProfile | None = None

    def add_residual_weight(self, num_sublayers: int, embed_dim: int) -> None:
        """Create the residual weights with value 1, as in a plain residual connection."""
        self.residual_weight = nn.Parameter(torch.ones(num_sublayers, embed_dim))
        self._sublayer = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer from its first sub-layer, even if the last pass was aborted, for example out of memory."""
        self._sublayer = 0
        return super().forward(*args, **kwargs)  # type: ignore[misc]

    def residual_connection(self, x: Tensor, residual: Tensor) -> Tensor:
        """Add the output of a sub-layer to its weighted input.

        fairseq calls this once per sub-layer, in order, without an index, so the layer counts.

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
    """Sets the weights of a stack's sub-layers, in order, from the measured variances.

    r starts at 1; each sub-layer gets w = r, then r <- sqrt(Var[x * w] + Var[f(x)]).
    """

    def __init__(self) -> None:
        self._r = 1.0

    def next_weight(self, weight: Tensor, x: Tensor, residual: Tensor) -> Tensor:
        """Set a sub-layer's weight to r, then update r from its variances over all elements of the batch."""
        with torch.no_grad():
            weight.fill_(self._r)
            variance = (residual.float() * weight.float()).var(unbiased=False) + x.float().var(unbiased=False)
            self._r = math.sqrt(variance.item())
        return weight


@contextmanager
def profiling(stacks: Iterable[nn.Module]) -> Iterator[None]:
    """Set the residual weights of stacks from the enclosed forward pass. Each stack starts at r = 1."""
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
    """Set the residual weights of a stack without data: w = sqrt(i) for sub-layer i, counted from 1.

    Profiling gives the same values if the outputs of all LayerNorms and all f(x) have variance 1.
    """
    number = 0
    for layer in layers:
        with torch.no_grad():
            for weight in layer.residual_weight:
                number += 1
                weight.fill_(math.sqrt(number))
