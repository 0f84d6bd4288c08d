"""Dynamic layer tying: during training, an agent decides which layers use the weights of an earlier layer.

Source: David-Hay & Wolf 2024, Dynamic Layer Tying for Parameter-Efficient Transformers, ICLR, arXiv 2401.12819. The
defaults follow the paper's algorithm, except that the reward is minus the loss instead of minus the perplexity. The
loss is a monotone function of the perplexity and has a better scale. The released code differs from the paper: its
design choices are available as options, its bugs are not.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import LayerMap, format_map, relabel
from fairseq_sharing.schedules.agent import Agent, Layers, Place, resolve
from fairseq_sharing.schedules.schedule import Decision, Observation, Schedule


class Dynamic(Schedule):
    """The paper's loop: every few updates, reward the last decision, learn from it and decide again.

    Until its first decision, a layer keeps its initial values and is frozen by default. The first decision about a
    layer always applies, even "use layer 0", which is also its initial state.

    Args:
        options: the schedule's options.
        maps: initial layer map of each stack; no layers may be shared.
    """

    def __init__(self, options: Namespace, maps: Mapping[str, LayerMap]):
        self._options = options
        self._agents: list[tuple[list[str], Agent]] = []
        for number, stacks in enumerate(_teams(options.dynamic_agent, list(maps))):
            depths = [len(maps[stack]) for stack in stacks]
            if max(depths) < 2:
                raise SharingError(f"--sharing-schedule dynamic requires at least 2 layers, got {max(depths)}")
            agent = Agent(
                depths,
                options.dynamic_hidden,
                options.dynamic_lr,
                options.dynamic_discount,
                options.dynamic_state == "scaled",
                options.dynamic_seed + number,
            )
            self._agents.append((stacks, agent))
        self._actions = {stack: [0] * len(maps[stack]) for stacks, _ in self._agents for stack in stacks}
        for stack, layer_map in maps.items():
            if len(set(layer_map)) < len(layer_map):
                shown = format_map(layer_map)
                raise SharingError(
                    f"--sharing-schedule dynamic: the {stack} has the layer map {shown}; allowed: --sharing none"
                )
        self._undecided = {stack: list(range(1, len(actions))) for stack, actions in self._actions.items()}
        self._turn = 0  # decisions made
        self._learned = 0  # decisions rewarded
        self._open: list[tuple[Layers, dict[Place, int]]] | None = None
        self._sampler = torch.Generator().manual_seed(options.dynamic_seed)
        self._log_values: dict[str, float] = {}
        stop = options.freeze_pattern_at
        reached = options.dynamic_interval * max(self._sweep(agent) for _, agent in self._agents)
        if stop is not None and stop <= reached:
            raise SharingError(
                f"--freeze-pattern-at must be after the first decision of every layer (update {reached}), got {stop}"
            )

    def start(self) -> Decision:
        """Freeze all layers except for the first, unless all layers train from the start."""
        return Decision({}, "initial freezing", self._frozen())

    def due(self, update: int) -> bool:
        """Decide at every interval until the pattern is frozen."""
        stop = self._options.freeze_pattern_at
        return update % self._options.dynamic_interval == 0 and (stop is None or update < stop)

    def decide(self, observed: Observation) -> Decision:
        """Reward the last decision, then choose the next actions."""
        if self._open is not None:
            self._learn(observed)
        epsilon, before = self.epsilon, self._states()
        self._open, reasons = [], []
        for (stacks, agent), state in zip(self._agents, before, strict=True):
            places = self._places(agent, self._turn)
            actions, random = agent.act(state, places, epsilon)
            taken: dict[Place, int] = dict(zip(places, actions, strict=True))
            self._open.append((state, taken))
            reasons.append("explored" if random else "chosen")
            for (number, layer), action in zip(places, actions, strict=True):
                stack = stacks[number]
                self._actions[stack][layer] = action
                if layer in self._undecided[stack]:
                    self._undecided[stack].remove(layer)
        self._turn += 1
        self._log_values["epsilon"] = epsilon
        maps = {stack: self._map(stack) for stack in self._actions}
        return Decision(maps, f"decision {self._turn}, {'/'.join(reasons)}", self._frozen())

    def decided(self, observed: Observation) -> None:
        """Reward the decision immediately if the options say so."""
        if self._options.dynamic_reward_when == "immediate":
            self._learn(observed)

    @property
    def epsilon(self) -> float:
        """The probability that the next decision is random."""
        options = self._options
        if options.dynamic_policy == "random":
            return 1.0
        count = self._learned
        if options.dynamic_epsilon_per == "sweep":
            count //= max(self._sweep(agent) for _, agent in self._agents)
        return max(options.dynamic_epsilon_decay**count, options.dynamic_epsilon_min)

    def log_values(self) -> dict[str, float]:
        """Return the last reward and the probability of a random decision."""
        return self._log_values

    def state_dict(self) -> dict[str, Any]:
        """Return the full state, including a decision that has no reward yet."""
        opened = None
        if self._open is not None:
            opened = [(before, [[*place, action] for place, action in taken.items()]) for before, taken in self._open]
        return {
            "actions": {stack: list(actions) for stack, actions in self._actions.items()},
            "undecided": {stack: list(layers) for stack, layers in self._undecided.items()},
            "turn": self._turn,
            "learned": self._learned,
            "open": opened,
            "sampler": self._sampler.get_state(),
            "agents": [agent.state_dict() for _, agent in self._agents],
            "told": dict(self._log_values),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state."""
        self._actions = {stack: list(actions) for stack, actions in state["actions"].items()}
        self._undecided = {stack: list(layers) for stack, layers in state["undecided"].items()}
        self._turn, self._learned = state["turn"], state["learned"]
        self._open = None
        if state["open"] is not None:
            self._open = [(before, {(s, layer): a for s, layer, a in actions}) for before, actions in state["open"]]
        self._sampler.set_state(state["sampler"])
        for (_, agent), saved in zip(self._agents, state["agents"], strict=True):
            agent.load_state_dict(saved)
        self._log_values = dict(state["told"])

    def _learn(self, observed: Observation) -> None:
        assert self._open is not None
        reward = self._reward(observed.mean_nll(self._draw))
        for (_, agent), (before, taken), now in zip(self._agents, self._open, self._states(), strict=True):
            agent.learn(before, taken, reward, now, self._places(agent, self._turn))
        self._open = None
        self._learned += 1
        self._log_values["reward"] = reward

    def _reward(self, nll: float) -> float:
        if self._options.dynamic_reward == "nll":
            return -nll
        reward = -math.exp(min(nll, 700.0))  # exp overflows beyond about 709
        return max(reward, -10.0) if self._options.dynamic_reward == "ppl-clip10" else reward

    def _draw(self, batches: int, count: int) -> list[int]:
        return torch.randint(batches, (count,), generator=self._sampler).tolist()

    def _states(self) -> list[Layers]:
        return [[resolve(self._actions[stack]) for stack in stacks] for stacks, _ in self._agents]

    def _places(self, agent: Agent, turn: int) -> list[Place]:
        """List the layers of a decision."""
        return agent.places if self._options.dynamic_decide == "all" else [agent.places[turn % len(agent.places)]]

    def _sweep(self, agent: Agent) -> int:
        """Count the decisions that cover every layer once."""
        return 1 if self._options.dynamic_decide == "all" else len(agent.places)

    def _map(self, stack: str) -> LayerMap:
        roots = resolve(self._actions[stack])
        return relabel(layer if layer in self._undecided[stack] else root for layer, root in enumerate(roots))

    def _frozen(self) -> dict[str, tuple[int, ...]]:
        if self._options.dynamic_initial == "train":
            return {}
        return {stack: tuple(layers) for stack, layers in self._undecided.items()}


def _teams(choice: str, stacks: Sequence[str]) -> list[list[str]]:
    """List the stacks of each agent.

    Raises:
        SharingError: if the model has no such stack.
    """
    if choice == "joint":
        return [list(stacks)]
    if choice == "separate":
        return [[stack] for stack in stacks]
    chosen = [stack for stack in stacks if stack.split(".")[0] == choice]
    if not chosen:
        raise SharingError(
            f"--dynamic-agent {choice}: the model has only {', '.join(stacks)}; allowed: joint, separate"
        )
    return [chosen]
