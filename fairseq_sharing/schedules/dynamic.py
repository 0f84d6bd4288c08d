"""Dynamic layer tying: while a model trains, an agent decides which layers use an earlier layer's weights.

Source: David-Hay & Wolf 2024, Dynamic Layer Tying for Parameter-Efficient Transformers, ICLR, arXiv 2401.12819. The
defaults are the paper's algorithm, with minus the loss as the reward in place of minus the perplexity, of which it is a
monotone function with a better scale. The released code differs from the paper; its choices are options, its mistakes
are not.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import LayerMap, relabel
from fairseq_sharing.schedules.agent import Agent, Layers, Place, resolve
from fairseq_sharing.schedules.schedule import Decision, Run, Schedule


class Dynamic(Schedule):
    """The paper's loop: after every few updates reward the last decision, learn from it, decide anew.

    A layer that no decision has reached yet keeps its initial values and, unless told otherwise, does not train. The
    first decision about it always holds, even "use layer 0", which the state says of it from the beginning.

    Args:
        options: the schedule's options.
        maps: the map that each stack starts with; all its layers must be their own.
    """

    def __init__(self, options: Namespace, maps: Mapping[str, LayerMap]):
        self._options = options
        self._agents: list[tuple[list[str], Agent]] = []
        for number, stacks in enumerate(_teams(options.dynamic_agent, list(maps))):
            depths = [len(maps[stack]) for stack in stacks]
            if max(depths) < 2:
                raise SharingError(f"--sharing-schedule dynamic needs at least 2 layers, the model has {max(depths)}")
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
                raise SharingError(f"--sharing-schedule dynamic starts from --sharing none, the {stack} shares layers")
        self._undecided = {stack: list(range(1, len(actions))) for stack, actions in self._actions.items()}
        self._turn = 0  # decisions made
        self._learned = 0  # decisions rewarded
        self._open: list[tuple[Layers, dict[Place, int]]] | None = None
        self._sampler = torch.Generator().manual_seed(options.dynamic_seed)
        self._told: dict[str, float] = {}
        stop = options.freeze_pattern_at
        reached = options.dynamic_interval * max(self._sweep(agent) for _, agent in self._agents)
        if stop is not None and stop <= reached:
            raise SharingError(
                f"--freeze-pattern-at must come after every layer's first decision ({reached}), got {stop}"
            )

    def start(self) -> Decision:
        """Freeze every layer but the first, unless all are to train from the start."""
        return Decision({}, "initial freezing", self._frozen())

    def due(self, update: int) -> bool:
        """Decide at every interval until the pattern is frozen."""
        stop = self._options.freeze_pattern_at
        return update % self._options.dynamic_interval == 0 and (stop is None or update < stop)

    def decide(self, run: Run) -> Decision:
        """Close the last decision with its reward, then choose."""
        if self._open is not None:
            self._learn(run)
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
        self._told["epsilon"] = epsilon
        maps = {stack: self._map(stack) for stack in self._actions}
        return Decision(maps, f"decision {self._turn}, {'/'.join(reasons)}", self._frozen())

    def decided(self, run: Run) -> None:
        """Reward the decision at once, where that is asked for."""
        if self._options.dynamic_reward_when == "immediate":
            self._learn(run)

    @property
    def epsilon(self) -> float:
        """Probability that the next decision is random."""
        options = self._options
        if options.dynamic_policy == "random":
            return 1.0
        count = self._learned
        if options.dynamic_epsilon_per == "sweep":
            count //= max(self._sweep(agent) for _, agent in self._agents)
        return max(options.dynamic_epsilon_decay**count, options.dynamic_epsilon_min)

    def told(self) -> dict[str, float]:
        """Return the last reward and the probability of a random decision."""
        return self._told

    def state_dict(self) -> dict[str, Any]:
        """Return everything, an open decision included."""
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
            "told": dict(self._told),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._actions = {stack: list(actions) for stack, actions in state["actions"].items()}
        self._undecided = {stack: list(layers) for stack, layers in state["undecided"].items()}
        self._turn, self._learned = state["turn"], state["learned"]
        self._open = None
        if state["open"] is not None:
            self._open = [(before, {(s, layer): a for s, layer, a in actions}) for before, actions in state["open"]]
        self._sampler.set_state(state["sampler"])
        for (_, agent), saved in zip(self._agents, state["agents"], strict=True):
            agent.load_state_dict(saved)
        self._told = dict(state["told"])

    def _learn(self, run: Run) -> None:
        assert self._open is not None
        reward = self._reward(run.mean_nll(self._draw))
        for (_, agent), (before, taken), now in zip(self._agents, self._open, self._states(), strict=True):
            agent.learn(before, taken, reward, now, self._places(agent, self._turn))
        self._open = None
        self._learned += 1
        self._told["reward"] = reward

    def _reward(self, nll: float) -> float:
        if self._options.dynamic_reward == "nll":
            return -nll
        reward = -math.exp(min(nll, 700.0))  # beyond that it is no number
        return max(reward, -10.0) if self._options.dynamic_reward == "ppl-clip10" else reward

    def _draw(self, batches: int, count: int) -> list[int]:
        return torch.randint(batches, (count,), generator=self._sampler).tolist()

    def _states(self) -> list[Layers]:
        return [[resolve(self._actions[stack]) for stack in stacks] for stacks, _ in self._agents]

    def _places(self, agent: Agent, turn: int) -> list[Place]:
        """Name the layers that a decision is about."""
        return agent.places if self._options.dynamic_decide == "all" else [agent.places[turn % len(agent.places)]]

    def _sweep(self, agent: Agent) -> int:
        """Count the decisions that reach every layer once."""
        return 1 if self._options.dynamic_decide == "all" else len(agent.places)

    def _map(self, stack: str) -> LayerMap:
        roots = resolve(self._actions[stack])
        return relabel(layer if layer in self._undecided[stack] else root for layer, root in enumerate(roots))

    def _frozen(self) -> dict[str, tuple[int, ...]]:
        if self._options.dynamic_initial == "train":
            return {}
        return {stack: tuple(layers) for stack, layers in self._undecided.items()}


def _teams(choice: str, stacks: Sequence[str]) -> list[list[str]]:
    """Say which stacks each agent decides about.

    Raises:
        SharingError: the model has no such stack.
    """
    if choice == "joint":
        return [list(stacks)]
    if choice == "separate":
        return [[stack] for stack in stacks]
    chosen = [stack for stack in stacks if stack.split(".")[0] == choice]
    if not chosen:
        raise SharingError(f"--dynamic-agent {choice}: the model has only {', '.join(stacks)}; allowed: joint")
    return [chosen]
