"""Gradients of a shared stack per layer, before the gradients of a shared parameter are summed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from fairseq_sharing.tying import alias_names, count_uses, proxy_parameters

Unit = tuple[int, ...]  # consecutive layers that are shared as a group


class UnitGradients:
    """Collects the per-layer gradients of one update over its micro-batches.

    While collecting, the layers of a shared set run with proxy parameters: the same storage, but separate gradients.
    These are recorded and then added to the gradient of the shared parameter, so the update itself does not change.

    Args:
        stack: a shared stack.
    """

    def __init__(self, stack: Any):
        self._stack = stack
        self._gradients: dict[str, torch.Tensor] = {}

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Collect from the enclosed forward and backward pass."""
        stack = self._stack
        owners = alias_names(stack, stack.sharing)
        owners.update({owner: owner for owner in owners.values()})
        shared = {owner: stack.get_parameter(owner) for owner in set(owners.values())}
        if all(parameter.grad is None for parameter in shared.values()):
            self._gradients = {}  # first micro-batch of an update
        with proxy_parameters(stack, owners, requires_grad=True) as proxies:
            yield
        uses = count_uses(stack, stack.sharing) if stack.averages_gradients else {}
        # From the last layer to the first: the order in which the backward pass sums them.
        total: dict[str, torch.Tensor] = {}
        for name in sorted(proxies, key=_depth, reverse=True):
            gradient = proxies[name].grad
            if gradient is None:
                continue
            owner = owners[name]
            total[owner] = total[owner] + gradient if owner in total else gradient
            self._gradients[name] = self._gradients[name] + gradient if name in self._gradients else gradient
        for owner, gradient in total.items():
            parameter = shared[owner]
            gradient = gradient / uses.get(parameter, 1)
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def reduce(self) -> None:
        """Sum the collected gradients over the ranks."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for name in sorted(self._gradients):
                torch.distributed.all_reduce(self._gradients[name])

    def cosines(self, pairs: Sequence[tuple[Unit, Unit]]) -> list[float]:
        """Compare the gradients of pairs of units.

        Args:
            pairs: pairs of units with the same number of layers.

        Returns:
            The cosine of the two gradients of each pair, over all parameters that their layers share; 1 if a gradient
            is zero, which is no evidence against sharing.
        """
        return [self._cosine(one, other) for one, other in pairs]

    def _cosine(self, one: Unit, other: Unit) -> float:
        product, squares = 0.0, [0.0, 0.0]
        for layer, partner in zip(one, other, strict=True):
            prefix = f"layers.{layer}."
            for name, gradient in self._gradients.items():
                if not name.startswith(prefix):
                    continue
                peer = self._gradients.get(f"layers.{partner}.{name.removeprefix(prefix)}")
                if peer is None:
                    continue
                first, second = gradient.flatten().double(), peer.flatten().double()
                product += float(first @ second)
                squares = [squares[0] + float(first @ first), squares[1] + float(second @ second)]
        norms = (squares[0] * squares[1]) ** 0.5
        return product / norms if norms else 1.0


def _depth(name: str) -> int:
    return int(name.split(".")[1])
