"""The gradient of every layer of a shared stack by itself, before the gradients of a shared parameter are added up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from fairseq_sharing.tying import alias_names, count_uses, stand_ins

Unit = tuple[int, ...]  # consecutive layers that are shared together


class UnitGradients:
    """Collects the gradients of one update, micro-batch by micro-batch.

    While it collects, the layers of a shared set run with stand-ins for their parameters: the same storage, but
    gradients of their own. These are kept and then added to the shared parameter's, so that the update is made as ever.

    Args:
        stack: a shared stack.
    """

    def __init__(self, stack: Any):
        self._stack = stack
        self._gradients: dict[str, torch.Tensor] = {}

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Collect from the forward and backward pass that runs inside."""
        stack = self._stack
        owners = alias_names(stack, stack.sharing)
        owners.update({owner: owner for owner in owners.values()})
        shared = {owner: stack.get_parameter(owner) for owner in set(owners.values())}
        if all(parameter.grad is None for parameter in shared.values()):
            self._gradients = {}  # the first micro-batch of an update
        with stand_ins(stack, owners, requires_grad=True) as made:
            yield
        uses = count_uses(stack, stack.sharing) if stack.averages_gradients else {}
        # From the last layer to the first: the order in which the backward pass adds them up.
        total: dict[str, torch.Tensor] = {}
        for name in sorted(made, key=_depth, reverse=True):
            gradient = made[name].grad
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
        """Add up what the ranks have collected."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for name in sorted(self._gradients):
                torch.distributed.all_reduce(self._gradients[name])

    def cosines(self, pairs: Sequence[tuple[Unit, Unit]]) -> list[float]:
        """Compare the gradients of units of layers.

        Args:
            pairs: units with equally many layers.

        Returns:
            The cosine of the two gradients of each pair, over all parameters that their layers share; 1 where one of
            them is zero, which says nothing against sharing.
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
