"""ACT, adaptive computation time: each position halts after its own number of depths of a stack."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Ponder:
    """Ponder cost of the positions of one forward pass.

    Args:
        steps: depths until each position halted, 1 to N; 0 for padding. (T, B), without gradient.
        remainder: weight of each position's last step; 0 for padding. (T, B), with the gradient of the cost.
    """

    steps: Tensor
    remainder: Tensor

    @property
    def cost(self) -> Tensor:
        """The ponder cost: the sum of steps and remainders over all positions except for padding. A scalar."""
        return (self.steps + self.remainder).sum()

    @property
    def positions(self) -> Tensor:
        """The number of positions that are not padding. A scalar."""
        return self.steps.ne(0).sum()


class AdaptiveComputationTime(nn.Module):
    """Halting unit of a stack, shared by all depths.

    The halting probability of a position at step t is p = sigmoid(w s + b), where s is the input of the step including
    the depth signal. The position halts at the first step where the sum of its p reaches 1 - eps, or at step N. The
    output of the stack is the mean of the step outputs weighted by p; the last one is weighted by the remainder, which
    makes the weights sum to 1. A halted state is copied to the later depths, which still compute keys and values from
    it for other positions to attend to. A decoder with a cache therefore skips nothing: every token has keys and values
    at all N depths.

    Args:
        embed_dim: C.
        num_layers: N, the maximum number of steps.
        epsilon: eps.

    Source: Graves 2016, "Adaptive Computation Time for Recurrent Neural Networks", equations 5 to 13, per position as
    in Dehghani et al. 2019, "Universal Transformers", Section 2.2. Their code interpolates between states instead of
    summing them, and its weights do not sum to 1 if a position reaches step N. Here they do, as in Graves.
    """

    def __init__(self, embed_dim: int, num_layers: int, epsilon: float):
        super().__init__()
        self.num_layers = num_layers
        self.threshold = 1.0 - epsilon
        self.weight = nn.Parameter(torch.empty(embed_dim))
        nn.init.normal_(self.weight, std=embed_dim**-0.5)
        # Graves: a positive bias, so that training does not start with the maximum number of steps.
        self.bias = nn.Parameter(torch.ones(1))

    def begin(self, state: Tensor, padding_mask: Tensor | None) -> None:
        """Start a forward pass.

        Args:
            state: input of the first depth, (T, B, C).
            padding_mask: True at padding, which takes no step, (B, T); None if there is no padding.
        """
        self._running = state.new_ones(state.shape[:2], dtype=torch.bool)
        if padding_mask is not None:
            self._running = ~padding_mask.transpose(0, 1).bool()
        self._halted_by = torch.zeros(self._running.shape, dtype=torch.float32, device=state.device)
        self._ponder = Ponder(torch.zeros_like(self._halted_by), torch.zeros_like(self._halted_by))
        self._mean = torch.zeros_like(state, dtype=torch.float32)

    def enter(self, state: Tensor, with_signal: Tensor, depth: int) -> None:
        """Decide before a step which positions halt at it.

        Args:
            state: the state from the previous depth, (T, B, C).
            with_signal: the input of the layer, (T, B, C).
            depth: index of the step, from 0.
        """
        # Always in fp32: in bf16, a sum of p would miss the threshold. Not a matrix product, which autocast would run
        # in bf16.
        p = ((with_signal.float() * self.weight.float()).sum(-1) + self.bias.float()).sigmoid()
        halting = self._halted_by + p >= self.threshold
        if depth == self.num_layers - 1:
            halting = torch.ones_like(halting)
        remainder = 1 - self._halted_by
        self._weight = torch.where(halting, remainder, p) * self._running
        self._ponder.steps = self._ponder.steps + self._running
        self._ponder.remainder = self._ponder.remainder + remainder * (halting & self._running)
        self._halted_by = self._halted_by + self._weight
        self._carried, self._steps_now = state, self._running
        self._running = self._running & ~halting

    def leave(self, made: Tensor) -> Tensor:
        """Process the output of a step.

        Args:
            made: the layer's output, (T, B, C).

        Returns:
            The state for the next depth, (T, B, C).
        """
        self._mean = self._mean + self._weight.unsqueeze(-1) * made
        return torch.where(self._steps_now.unsqueeze(-1), made, self._carried.to(made))

    def finish(self) -> tuple[Tensor, Ponder]:
        """End a forward pass.

        Returns:
            The weighted mean of each position's states, in fp32, (T, B, C), zero at padding; and the ponder cost.
        """
        mean, ponder = self._mean, self._ponder
        del self._mean, self._ponder, self._weight, self._halted_by, self._running, self._carried, self._steps_now
        return mean, ponder
