"""Reuse the layer maps of an earlier run: repeat its changes, or train with its final map from the start."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq_sharing.checkpoints.choose import newest_readable
from fairseq_sharing.checkpoints.files import load_checkpoint
from fairseq_sharing.checkpoints.recorded_state import recorded_sharing
from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import LayerMap, format_map
from fairseq_sharing.schedules.schedule import Decision, Observation, Schedule


def recorded_changes(checkpoint: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Read the map changes that a run's checkpoint records; none for a run without a schedule.

    Returns:
        For each change: update, reason, before and after (for each stack layer_map and frozen; and parameters), bytes,
        gradient_norm.
    """
    return recorded_state(checkpoint).get("changes", [])


def recorded_state(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the state of a schedule's engine in a checkpoint; empty if it has none."""
    extra = checkpoint.get("extra_state") or {}
    kept = [v for v in extra.values() if isinstance(v, Mapping) and {"schedule", "changes"} <= v.keys()]
    return kept[0] if kept else {}


def final_map_options(run: Path | str) -> dict[str, str]:
    """Return the options that give a new model the final layer maps of a trained one.

    Args:
        run: a checkpoint or a run directory of ``fairseq-sharing train``.

    Returns:
        ``encoder_sharing`` (custom), ``encoder_layer_map`` and so on, for each stack.

    Raises:
        SharingError: if there is no readable checkpoint, or if it has no layer map.
    """
    path = Path(run)
    file = newest_readable(path / "checkpoints", optimizer_state=False) if path.is_dir() else path
    if file is None:
        raise SharingError(f"--map-of {run}: no readable checkpoint found")
    sharing = recorded_sharing(load_checkpoint(file)["model"])
    if not sharing:
        raise SharingError(f"--map-of {run}: the checkpoint has no layer map")
    maps = {name.split(".")[0]: format_map(stack.layer_map) for name, stack in sharing.items()}
    custom = {f"{stack}_sharing": "custom" for stack in maps}
    return custom | {f"{stack}_layer_map": f"'{layer_map}'" for stack, layer_map in maps.items()}


class Replay(Schedule):
    """Repeat the recorded map changes of a run.

    Args:
        file: a checkpoint of the run.
        maps: initial layer map of each stack.

    Raises:
        SharingError: if the checkpoint is not readable, records no changes, or started with other layer maps.
    """

    def __init__(self, file: Path | str, maps: Mapping[str, LayerMap]):
        changes = recorded_changes(load_checkpoint(file))
        if not changes:
            raise SharingError(f"--replay-of {file}: the run did not change a layer map")
        self._frozen_first = {stack: tuple(changes[0]["before"][stack]["frozen"]) for stack in maps}
        for stack, layer_map in maps.items():
            began = tuple(changes[0]["before"][stack]["layer_map"])
            if began != layer_map:
                raise SharingError(
                    f"--replay-of {file}: its {stack} started with the layer map {format_map(began)}, "
                    f"got {format_map(layer_map)}"
                )
        self._changes = {change["update"]: change["after"] for change in changes}
        self._stacks = tuple(maps)

    def start(self) -> Decision:
        """Freeze the layers that were frozen at the start of the run."""
        return Decision({}, "initial freezing", self._frozen_first)

    def due(self, update: int) -> bool:
        """Change the maps at the recorded updates."""
        return update in self._changes

    def decide(self, observed: Observation) -> Decision:
        """Return the recorded maps."""
        after = self._changes[observed.update]
        maps = {stack: tuple(after[stack]["layer_map"]) for stack in self._stacks}
        return Decision(maps, "replayed", {stack: tuple(after[stack]["frozen"]) for stack in self._stacks})

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state: the file contains everything."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing: there is no state."""
