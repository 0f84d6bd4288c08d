"""Share, then unshare: the units of a stack share parameters until they become independent.

Source: Yang et al. 2021, Speeding up Deep Model Training by Sharing Weights and Then Unsharing, arXiv 2110.03848.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from fairseq_sharing.layer_map import LayerMap, num_unique, relabel
from fairseq_sharing.schedules.schedule import Decision, Observation, Schedule
from fairseq_sharing.schedules.unit_gradients import Unit

Pair = tuple[Unit, Unit]


@dataclass(frozen=True)
class UnshareRule:
    """Conditions under which units become independent.

    Attributes:
        at: untie all layers at this update (SWE-F).
        when: ``correlation`` unties a stack when most of its adjacent units disagree (SWE-A), ``correlation-split``
            splits it between two units that disagree (SWE-M).
        threshold: rho; the gradients of two units disagree if their cosine is below it.
        interval: number of updates between two checks.
        patience: number of consecutive checks that must find disagreement.
    """

    at: int | None = None
    when: str | None = None
    threshold: float = 0.5
    interval: int = 1000
    patience: int = 3


def find_chains(layer_map: LayerMap) -> list[list[Unit]]:
    """Find the units that a map shares, in order of use.

    Returns:
        Chains of at least two units with the same parameters. A map that repeats a block of A layers B times is one
        chain of B units of A layers. In any other map, each set used by several layers is a chain of single layers.
    """
    size, period = len(layer_map), num_unique(layer_map)
    if period and size % period == 0 and layer_map == tuple(range(period)) * (size // period):
        units: list[Unit] = [tuple(range(start, start + period)) for start in range(0, size, period)]
        return [units] if len(units) > 1 else []
    users: list[list[Unit]] = [
        [(layer,) for layer, label in enumerate(layer_map) if label == group] for group in range(period)
    ]
    return [units for units in users if len(units) > 1]


def tied_pairs(chains: list[list[Unit]], layer_map: LayerMap) -> list[Pair]:
    """List the pairs of adjacent units that share parameters in a map."""
    pairs = [pair for units in chains for pair in pairwise(units)]
    return [(one, other) for one, other in pairs if layer_map[one[0]] == layer_map[other[0]]]


def split_between(layer_map: LayerMap, chains: list[list[Unit]], pairs: list[Pair]) -> LayerMap:
    """Split the sets of a map between the units of each pair; the units on either side remain shared."""
    labels: list[Any] = list(layer_map)
    for units in chains:
        part = 0
        for number, unit in enumerate(units):
            part += number > 0 and (units[number - 1], unit) in pairs
            for layer in unit:
                labels[layer] = (layer_map[layer], part)
    return relabel(labels)


class Unshare(Schedule):
    """SWE-F, SWE-A and SWE-M, independently for each stack.

    Args:
        rule: the conditions.
        maps: initial layer map of each stack.
    """

    def __init__(self, rule: UnshareRule, maps: Mapping[str, LayerMap]):
        self._rule = rule
        self._chains = {stack: find_chains(layer_map) for stack, layer_map in maps.items()}
        self._maps = dict(maps)
        # Consecutive checks that found disagreement: per stack (SWE-A), or per pair, named by its first layers (SWE-M).
        self._found: dict[str, int] = {}
        self._log_values: dict[str, float] = {}

    @property
    def phase(self) -> str:
        """The phase of the run: ``shared``, ``split`` (partly untied) or ``unshared``."""
        tied = sum(len(tied_pairs(chains, self._maps[stack])) for stack, chains in self._chains.items())
        started = sum(len(units) - 1 for chains in self._chains.values() for units in chains)
        return "unshared" if not tied else "shared" if tied == started else "split"

    def due(self, update: int) -> bool:
        """Decide at the given update, or when a check is due."""
        if self._rule.when is None:
            return self._rule.at is not None and update >= self._rule.at and self.phase != "unshared"
        return bool(self.watched(update))

    def watched(self, update: int) -> tuple[str, ...]:
        """Watch the stacks that still share layers when a check is due."""
        if self._rule.when is None or update % self._rule.interval:
            return ()
        return tuple(stack for stack in self._chains if self._tied(stack))

    def decide(self, observed: Observation) -> Decision | None:
        """Untie layers by the rule."""
        if self._rule.when is None:
            maps = {stack: tuple(range(len(m))) for stack, m in self._maps.items() if self._tied(stack)}
            reasons = [f"update {self._rule.at} reached"]
        else:
            maps, reasons = {}, []
            for stack in self.watched(observed.update):
                parted, reason = self._check(stack, observed.gradients[stack].cosines(self._tied(stack)))
                if parted:
                    maps[stack] = parted
                    reasons.append(f"{stack}: {reason}")
        if not maps:
            return None
        self._maps.update(maps)
        return Decision(maps, "; ".join(reasons))

    def log_values(self) -> dict[str, float]:
        """Return the mean cosine of each stack at its last check."""
        return self._log_values

    def state_dict(self) -> dict[str, Any]:
        """Return the phase, the maps, the counts of checks and the logged values."""
        maps = {stack: list(layer_map) for stack, layer_map in self._maps.items()}
        return {"phase": self.phase, "maps": maps, "found": dict(self._found), "told": dict(self._log_values)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state."""
        self._maps = {stack: tuple(labels) for stack, labels in state["maps"].items()}
        self._found, self._log_values = dict(state["found"]), dict(state["told"])

    def _tied(self, stack: str) -> list[Pair]:
        return tied_pairs(self._chains[stack], self._maps[stack])

    def _check(self, stack: str, cosines: list[float]) -> tuple[LayerMap | None, str]:
        """Count disagreements; return the new map, if any, and the reason."""
        rule, pairs = self._rule, self._tied(stack)
        self._log_values[f"{stack}_correlation"] = sum(cosines) / len(cosines)
        low = [cosine < rule.threshold for cosine in cosines]
        if rule.when == "correlation":
            if not self._count(stack, 2 * sum(low) > len(low)):
                return None, ""
            reason = f"{sum(low)} of {len(low)} pairs of adjacent units have a correlation below {rule.threshold:g}"
            return tuple(range(len(self._maps[stack]))), reason
        firing = [
            (pair, cosine)
            for pair, cosine, disagrees in zip(pairs, cosines, low, strict=True)
            if self._count(f"{stack}:{pair[0][0]}:{pair[1][0]}", disagrees)
        ]
        if not firing:
            return None, ""
        reason = ", ".join(f"layers {one[-1] + 1}|{other[0] + 1} {cosine:.3f}" for (one, other), cosine in firing)
        layer_map = split_between(self._maps[stack], self._chains[stack], [pair for pair, _ in firing])
        return layer_map, f"correlation below {rule.threshold:g} at {reason}"

    def _count(self, name: str, disagrees: bool) -> bool:
        """Count a check and return whether enough consecutive checks found disagreement."""
        self._found[name] = self._found.get(name, 0) + 1 if disagrees else 0
        return self._found[name] >= self._rule.patience
