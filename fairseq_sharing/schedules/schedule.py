"""The interface of a schedule: after an update it receives an observation and may return new layer maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fairseq_sharing.layer_map import LayerMap
from fairseq_sharing.schedules.unit_gradients import UnitGradients


@dataclass(frozen=True)
class Decision:
    """New layer maps and frozen layers.

    Attributes:
        maps: layer map of each stack that changes.
        reason: why, in words.
        frozen: for each stack, the layers that do not train yet.
    """

    maps: Mapping[str, LayerMap]
    reason: str
    frozen: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Observation:
    """What a schedule observes after an update.

    Attributes:
        update: number of updates so far.
        maps: current layer map of each stack.
        gradients: for each watched stack, the gradients of its layers in the last update.
        mean_nll: returns the loss of the current model without dropout, in nats per target token over all ranks. The
            given function draws the training batches: (number of batches, count) -> indices.
    """

    update: int
    maps: Mapping[str, LayerMap]
    gradients: Mapping[str, UnitGradients]
    mean_nll: Callable[[Callable[[int, int], list[int]]], float]


class Schedule(ABC):
    """Decides which layers share. Every rank has its own; all must reach the same decision."""

    def start(self) -> Decision | None:
        """Return a decision that applies before the first update, or None to start as the options say."""
        return None

    @abstractmethod
    def due(self, update: int) -> bool:
        """Return whether a decision is due after an update."""

    @abstractmethod
    def decide(self, observed: Observation) -> Decision | None:
        """Decide after an update that is due. None leaves the maps unchanged."""

    def decided(self, observed: Observation) -> None:  # noqa: B027  optional for a schedule
        """Receive the state after a decision was applied."""

    def watched(self, update: int) -> tuple[str, ...]:
        """Return the stacks whose gradients per layer are needed for the decision after an update."""
        return ()

    def log_values(self) -> dict[str, float]:
        """Return values for the training log."""
        return {}

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the state that later decisions depend on: plain values and tensors."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state."""
