"""The agent of dynamic layer tying: a small Q-network over the layers of one or more stacks.

The network and its optimizer are torch's. Q-learning itself is one line, so no library is used.

Source: David-Hay & Wolf 2024, Dynamic Layer Tying for Parameter-Efficient Transformers, Section 3 and Appendix A.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

# One list per stack, one entry per layer: an action (the layer whose weights to use, or the layer itself) or a root.
Layers = list[list[int]]
# A layer to decide about: (stack, layer).
Place = tuple[int, int]

WEIGHT_DECAY = 0.01  # of the Q-network's AdamW


def resolve(actions: Sequence[int]) -> list[int]:
    """Resolve each layer's action to the layer whose weights it finally uses.

    Args:
        actions: for layer i a value from 0 to i; i means that the layer has its own weights.

    Returns:
        The root of each layer i: at most i, and its own root.
    """
    roots: list[int] = []
    for layer, action in enumerate(actions):
        roots.append(layer if action == layer else roots[action])
    return roots


def head_offset(layer: int) -> int:
    """Return the offset of a layer's values within its stack's: layer i >= 1 has i + 1 values."""
    return (layer - 1) * (layer + 2) // 2


def head_size(num_layers: int) -> int:
    """Count the values of a stack."""
    return head_offset(num_layers)


class Agent:
    """Additive Q-learning agent: Q(s, a) is the sum over the layers of Q(s)[layer, action of the layer].

    Args:
        depths: number of layers of each stack that the agent decides about.
        hidden: hidden units of the network.
        lr: learning rate.
        discount: discount factor of the next state's value.
        scaled: whether to divide the roots by the index of the last layer.
        seed: seed of the network and the exploration.
    """

    def __init__(self, depths: Sequence[int], hidden: int, lr: float, discount: float, scaled: bool, seed: int):
        self.depths = list(depths)
        self.places: list[Place] = [(stack, layer) for stack, n in enumerate(depths) for layer in range(1, n)]
        self._discount, self._scaled = discount, scaled
        self._generator = torch.Generator().manual_seed(seed)
        outputs = sum(head_size(n) for n in depths)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._network = nn.Sequential(nn.Linear(len(self.places), hidden), nn.ReLU(), nn.Linear(hidden, outputs))
        self._optimizer = torch.optim.AdamW(self._network.parameters(), lr=lr, weight_decay=WEIGHT_DECAY)

    def values(self, state: Layers) -> dict[Place, torch.Tensor]:
        """Return the values of all actions of each layer in a state of roots, (layer + 1,) per layer."""
        scales = [(n - 1 if self._scaled else 1) for n in self.depths]
        inputs = [state[stack][layer] / scales[stack] for stack, layer in self.places]
        output = self._network(torch.tensor(inputs, dtype=torch.float32))
        starts = [sum(head_size(n) for n in self.depths[:stack]) for stack in range(len(self.depths))]
        return {
            (stack, layer): output[starts[stack] + head_offset(layer) : starts[stack] + head_offset(layer + 1)]
            for stack, layer in self.places
        }

    def act(self, state: Layers, places: Sequence[Place], epsilon: float) -> tuple[list[int], bool]:
        """Choose actions for some layers: all at random with probability epsilon, otherwise the best ones.

        Returns:
            The actions, and whether they are random.
        """
        if float(torch.rand(1, generator=self._generator)) < epsilon:
            return [int(torch.randint(layer + 1, (1,), generator=self._generator)) for _, layer in places], True
        with torch.no_grad():
            values = self.values(state)
        return [int(values[place].argmax()) for place in places], False

    def learn(
        self,
        state: Layers,
        actions: Mapping[Place, int],
        reward: float,
        next_state: Layers,
        next_places: Sequence[Place],
    ) -> None:
        """Perform one step of Q-learning.

        Args:
            state: roots before the actions.
            actions: the chosen action of each layer.
            reward: reward of these actions.
            next_state: roots when the next decision is due.
            next_places: the layers of the next decision.
        """
        with torch.no_grad():
            ahead = self.values(next_state)
            target = reward + self._discount * sum(float(ahead[place].max()) for place in next_places)
        values = self.values(state)
        chosen = torch.stack([values[place][action] for place, action in actions.items()]).sum()
        self._optimizer.zero_grad()
        (chosen - target).square().backward()
        self._optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the network, its optimizer and the random generator of the exploration."""
        return {
            "network": {name: value.clone() for name, value in self._network.state_dict().items()},
            "optimizer": self._optimizer.state_dict(),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state."""
        self._network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._generator.set_state(state["generator"])
