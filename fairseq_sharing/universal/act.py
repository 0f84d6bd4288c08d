"""ACT, adaptive computation time: each position decides after how many of a stack's depths its state is finished."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Ponder:
    """What the positions of one forward pass cost.

    Args:
        steps: depths until each position halted, 1 to N; 0 for padding. (T, B), no gradient.
        remainder: weight of each position's last step; 0 for padding. (T, B), carries the gradient of the cost.
    """

    steps: Tensor
    remainder: Tensor

    @property
    def cost(self) -> Tensor:
        """Sum steps and remainders over all positions but padding: the ponder cost. A scalar."""
        return (self.steps + self.remainder).sum()

    @property
    def positions(self) -> Tensor:
        """Count the positions that are no padding. A scalar."""
        return self.steps.ne(0).sum()


class AdaptiveComputationTime(nn.Module):
    """Halting of the positions of a stack; one unit for all its depths.

    Step t of a position takes the state s that enters it (its depth signal added) and has the halting probability
    p = sigmoid(w s + b). The position halts at the first step where its p sum up to 1 - eps, or at step N. What the
    stack gives is the mean of the states that the steps made, weighted by p, the last one by what is missing to 1 (the
    remainder). A halted state is copied onward: later depths still give it keys and values, for others to attend to.
    So nothing is skipped in a decoder that caches them: every word has its keys and values at all N depths.

    Args:
        embed_dim: C.
        num_layers: N, the most steps a position takes.
        epsilon: eps.

    Source: Graves 2016, "Adaptive Computation Time for Recurrent Neural Networks", equations 5 to 13, per position as
    in Dehghani et al. 2019, "Universal Transformers", Section 2.2. Their code interpolates between states instead of
    adding them up, and leaves weights at step N that do not sum up to 1; here they do, as Graves has it.
    """

    def __init__(self, embed_dim: int, num_layers: int, epsilon: float):
        super().__init__()
        self.num_layers = num_layers
        self.threshold = 1.0 - epsilon
        self.weight = nn.Parameter(torch.empty(embed_dim))
        nn.init.normal_(self.weight, std=embed_dim**-0.5)
        # Graves: a positive bias, so that training does not start with the longest computation.
        self.bias = nn.Parameter(torch.ones(1))

    def begin(self, state: Tensor, padding_mask: Tensor | None) -> None:
        """Start a forward pass.

        Args:
            state: what enters the first depth, (T, B, C).
            padding_mask: True at padding, which takes no step, (B, T); None for no padding.
        """
        self._running = state.new_ones(state.shape[:2], dtype=torch.bool)
        if padding_mask is not None:
            self._running = ~padding_mask.transpose(0, 1).bool()
        self._halted_by = torch.zeros(self._running.shape, dtype=torch.float32, device=state.device)
        self._ponder = Ponder(torch.zeros_like(self._halted_by), torch.zeros_like(self._halted_by))
        self._mean = torch.zeros_like(state, dtype=torch.float32)

    def enter(self, state: Tensor, with_signal: Tensor, depth: int) -> None:
        """Decide which positions halt at a step, before it.

        Args:
            state: the carried state, (T, B, C).
            with_signal: what the layer gets, (T, B, C).
            depth: number of the step, from 0.
        """
        # In fp32 whatever the model's precision: a sum of p in bf16 would miss the threshold. (Autocast would run a
        # matrix product in bf16 all the same.)
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
        """Take what a step made.

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
            The weighted mean of each position's states, in fp32, (T, B, C), zero at padding; and what they cost.
        """
        mean, ponder = self._mean, self._ponder
        del self._mean, self._ponder, self._weight, self._halted_by, self._running, self._carried, self._steps_now
        return mean, ponder
