"""What a schedule is: it looks at the run after an update and may return other layer maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fairseq_sharing.layer_map import LayerMap
from fairseq_sharing.schedules.unit_gradients import UnitGradients


@dataclass(frozen=True)
class Decision:
    """What the stacks share from now on.

    Attributes:
        maps: of every stack that changes.
        reason: why, in words.
        frozen: by stack, the layers that do not train yet.
    """

    maps: Mapping[str, LayerMap]
    reason: str
    frozen: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """What a schedule sees of a training.

    Attributes:
        update: updates made.
        maps: the present layer map of each stack.
        gradients: by stack, the gradients of its layers in the last update; only where the schedule asked for them.
        mean_nll: gives the loss of the model as it is now, without dropout, on training batches drawn by the given
            function (number of batches, count -> indices): nats per target token, over all ranks.
    """

    update: int
    maps: Mapping[str, LayerMap]
    gradients: Mapping[str, UnitGradients]
    mean_nll: Callable[[Callable[[int, int], list[int]]], float]


class Schedule(ABC):
    """Decides which layers share. Every rank has one; all must decide alike from what they see."""

    def start(self) -> Decision | None:
        """Return what holds before the first update, where that is not what the options say."""
        return None

    @abstractmethod
    def due(self, update: int) -> bool:
        """Tell whether there is something to decide after an update."""

    @abstractmethod
    def decide(self, run: Run) -> Decision | None:
        """Look at the run after an update that is due; None leaves the maps alone."""

    def decided(self, run: Run) -> None:  # noqa: B027  most schedules need not look
        """Look at the run once the decision holds."""

    def watched(self, update: int) -> tuple[str, ...]:
        """Name the stacks whose gradients, layer by layer, the decision after an update needs."""
        return ()

    def told(self) -> dict[str, float]:
        """Return numbers to show in the training log."""
        return {}

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next decisions depend on: plain values and tensors."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
