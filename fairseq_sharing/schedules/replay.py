"""What an earlier run's maps do without its decisions: its changes made again, or its last map from the start."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq_sharing.checkpoints.choose import newest_readable
from fairseq_sharing.checkpoints.files import load_checkpoint
from fairseq_sharing.checkpoints.sharing_state import recorded_sharing
from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import LayerMap, format_map
from fairseq_sharing.schedules.schedule import Decision, Run, Schedule


def recorded_changes(checkpoint: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Read the changes of the map that a run's checkpoint tells; none for a run without a schedule.

    Returns:
        By change: update, reason, before and after (by stack: layer_map, frozen; and parameters), bytes, gradient_norm.
    """
    return recorded_state(checkpoint).get("changes", [])


def recorded_state(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Find what the engine of a schedule keeps in a checkpoint; empty where there is none."""
    extra = checkpoint.get("extra_state") or {}
    kept = [v for v in extra.values() if isinstance(v, Mapping) and {"schedule", "changes"} <= v.keys()]
    return kept[0] if kept else {}


def final_map_options(run: Path | str) -> dict[str, str]:
    """Give the options of a model whose layers share from the start as those of a trained one do in the end.

    Args:
        run: a checkpoint, or a run directory of ``fairseq-sharing train``.

    Returns:
        ``encoder_sharing`` (custom), ``encoder_layer_map`` and so on, for each stack.

    Raises:
        SharingError: no readable checkpoint there, or one without a map.
    """
    path = Path(run)
    file = newest_readable(path / "checkpoints", optimizer_state=False) if path.is_dir() else path
    if file is None:
        raise SharingError(f"--map-of {run}: has no readable checkpoint")
    sharing = recorded_sharing(load_checkpoint(file)["model"])
    if not sharing:
        raise SharingError(f"--map-of {run}: its model tells no layer map")
    maps = {name.split(".")[0]: format_map(stack.layer_map) for name, stack in sharing.items()}
    custom = {f"{stack}_sharing": "custom" for stack in maps}
    return custom | {f"{stack}_layer_map": f"'{layer_map}'" for stack, layer_map in maps.items()}


class Replay(Schedule):
    """Changes the maps as recorded.

    Args:
        file: a checkpoint of the run.
        maps: the map that each stack starts with.

    Raises:
        SharingError: no readable checkpoint, one without changes, or one whose run began with other maps.
    """

    def __init__(self, file: Path | str, maps: Mapping[str, LayerMap]):
        changes = recorded_changes(load_checkpoint(file))
        if not changes:
            raise SharingError(f"--replay-of {file}: its run has made no change of a layer map")
        self._frozen_first = {stack: tuple(changes[0]["before"][stack]["frozen"]) for stack in maps}
        for stack, layer_map in maps.items():
            began = tuple(changes[0]["before"][stack]["layer_map"])
            if began != layer_map:
                raise SharingError(
                    f"--replay-of {file}: its {stack} began with {format_map(began)}, "
                    f"now it has {format_map(layer_map)}"
                )
        self._changes = {change["update"]: change["after"] for change in changes}
        self._stacks = tuple(maps)

    def start(self) -> Decision:
        """Freeze the layers that were frozen at first."""
        return Decision({}, "initial freezing", self._frozen_first)

    def due(self, update: int) -> bool:
        """Change at the updates that were recorded."""
        return update in self._changes

    def decide(self, run: Run) -> Decision:
        """Change the maps as they were changed then."""
        after = self._changes[run.update]
        maps = {stack: tuple(after[stack]["layer_map"]) for stack in self._stacks}
        return Decision(maps, "replayed", {stack: tuple(after[stack]["frozen"]) for stack in self._stacks})

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the file says all."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take nothing."""
