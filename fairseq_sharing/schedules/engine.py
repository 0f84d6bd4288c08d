"""The engine of all schedules: after an update, it asks the schedule, applies the change and records it."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from fairseq.logging import metrics

from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import format_map, num_unique
from fairseq_sharing.options import flag_of
from fairseq_sharing.schedules.change_sharing import change_sharing, measure_bytes
from fairseq_sharing.schedules.schedule import Decision, Observation, Schedule
from fairseq_sharing.schedules.unit_gradients import UnitGradients
from fairseq_sharing.tying import alias_names, proxy_parameters

logger = logging.getLogger(__name__)


class Engine:
    """Runs a schedule in fairseq's trainer.

    Args:
        schedule: the schedule.
        model: the shared model.
        options: the schedule's options.
    """

    def __init__(self, schedule: Schedule, model: Any, options: Namespace):
        self._schedule, self._model, self._options = schedule, model, options
        self._gradients: dict[str, UnitGradients] = {}
        self._changes: list[dict[str, Any]] = []
        self._seen = 0  # the last update that was processed
        self._parameter_updates = 0  # unique trainable parameters, summed over the updates
        for stack in model.stacks.values():
            stack.average_gradients(options.tied_gradients == "mean")
        begin = schedule.start()
        if begin is not None:
            for name, stack in model.stacks.items():
                stack.freeze(begin.frozen.get(name, ()))

    @contextmanager
    def training_step(self, update: int) -> Iterator[None]:
        """Collect gradients per layer, or restrict them to each set's owner, in the enclosed forward and backward pass.

        Args:
            update: updates made before this one.

        Raises:
            SharingError: if the model resumes from a changed map without the state of its schedule.
        """
        if not self._seen and self._model.map_changed_by:
            raise SharingError(
                f"the checkpoint's map was changed by {self._model.map_changed_by}, but the state of its schedule was "
                "not loaded; allowed: resume without --reset-dataloader, or use a task without a schedule"
            )
        with ExitStack() as inside:
            for name in self._schedule.watched(update + 1):
                unit_gradients = self._gradients.setdefault(name, UnitGradients(self._model.stacks[name]))
                inside.enter_context(unit_gradients.collect())
            if self._options.tied_gradients == "root":
                for stack in self._model.stacks.values():
                    inside.enter_context(
                        proxy_parameters(stack, alias_names(stack, stack.sharing), requires_grad=False)
                    )
            yield

    def after_update(self, trainer: Any, mean_nll: Callable[[Callable[[int, int], list[int]]], float]) -> None:
        """Run the schedule after an update.

        Args:
            trainer: fairseq's trainer of the model.
            mean_nll: as in ``Observation``.
        """
        update = trainer.get_num_updates()
        if update == self._seen:
            return  # fairseq's trainer calls itself again after a batch that overflowed
        self._seen = update
        if self._changes and "after" not in self._changes[-1]["gradient_norm"]:
            self._complete_record(trainer)
        if self._schedule.due(update):
            self._decide(trainer, mean_nll)
        self._log(trainer)

    def _decide(self, trainer: Any, mean_nll: Callable[[Callable[[int, int], list[int]]], float]) -> None:
        for gradients in self._gradients.values():
            gradients.reduce()
        observed = Observation(trainer.get_num_updates(), self._maps(), self._gradients, mean_nll)
        decision = _agreed(self._schedule.decide(observed))
        self._gradients = {}
        if decision is not None:
            self._change(trainer, decision)
            self._schedule.decided(replace(observed, maps=self._maps(), gradients={}))
        _compare_ranks(self._schedule, observed.update)

    def _change(self, trainer: Any, decision: Decision) -> None:
        """Apply and record a decision if it changes anything."""
        model, stacks = self._model, self._model.stacks
        before = self._describe()
        changes = {
            name: (replace(stacks[name].sharing, layer_map=layer_map), decision.frozen.get(name, ()))
            for name, layer_map in decision.maps.items()
            if (layer_map, decision.frozen.get(name, ())) != (stacks[name].sharing.layer_map, stacks[name].frozen)
        }
        if not changes:
            return
        memory = measure_bytes(trainer.get_model(), trainer.optimizer)
        change_sharing(
            trainer.get_model(),
            changes,
            trainer.optimizer,
            trainer.model,
            trainer.criterion.parameters(),
            inherit=self._options.untied_moments == "inherit",
        )
        model.map_changed_by = f"{self._options.sharing_schedule} at update {trainer.get_num_updates()}"
        self._changes.append(
            {
                "update": trainer.get_num_updates(),
                "reason": decision.reason,
                "before": before,
                "after": self._describe(),
                "bytes": {"before": memory},
                "gradient_norm": {"before": _gradient_norm()},
            }
        )
        for name in changes:
            now = format_map(stacks[name].sharing.layer_map)
            logger.info(f"{name} map at update {trainer.get_num_updates()}: {now} ({decision.reason})")

    def _complete_record(self, trainer: Any) -> None:
        """Complete the record of the last change one update later, when gradients and moments exist again."""
        change = self._changes[-1]
        change["bytes"]["after"] = measure_bytes(trainer.get_model(), trainer.optimizer)
        change["gradient_norm"]["after"] = _gradient_norm()
        logger.info(json.dumps({"map_change": change}))
        if trainer.is_data_parallel_master and trainer.cfg.common.tensorboard_logdir:
            _draw(Path(trainer.cfg.common.tensorboard_logdir), change)

    def _describe(self) -> dict[str, Any]:
        """Return the layer map and frozen layers of each stack, and the unique trainable parameters of the model."""
        described: dict[str, Any] = {
            name: {"layer_map": list(stack.sharing.layer_map), "frozen": list(stack.frozen)}
            for name, stack in self._model.stacks.items()
        }
        described["parameters"] = sum(p.numel() for p in self._model.parameters() if p.requires_grad)
        return described

    def _maps(self) -> dict[str, tuple[int, ...]]:
        return {name: stack.sharing.layer_map for name, stack in self._model.stacks.items()}

    def _log(self, trainer: Any) -> None:
        """Write the state of the sharing to the training log and TensorBoard."""
        parameters = sum(p.numel() for p in self._model.parameters() if p.requires_grad)
        self._parameter_updates += parameters
        metrics.log_scalar("parameters", parameters, weight=0, priority=1400)
        for name, layer_map in self._maps().items():
            metrics.log_scalar(f"{name}_sets", num_unique(layer_map), weight=0, priority=1400)
        for name, value in self._schedule.log_values().items():
            metrics.log_scalar(name, value, weight=0, round=4, priority=1410)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that later changes depend on, and the changes so far."""
        return {
            "options": vars(self._options),
            "schedule": self._schedule.state_dict(),
            "changes": self._changes,
            "updates": self._seen,
            "parameter_updates": self._parameter_updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state.

        Raises:
            SharingError: if it comes from a run with different options.
        """
        now = vars(self._options)
        for name, value in state["options"].items():
            if now.get(name) != value:
                raise SharingError(
                    f"{flag_of(name)} is {now.get(name)}, but the checkpoint was trained with {value}; "
                    "resume a schedule with its original options"
                )
        self._schedule.load_state_dict(state["schedule"])
        self._changes = list(state["changes"])
        self._seen, self._parameter_updates = state["updates"], state["parameter_updates"]
        shown = state["schedule"].get("phase")
        if shown:
            logger.info(f"phase of the checkpoint: {shown}")


def _gradient_norm() -> float:
    """Return the gradient norm of the last update before clipping."""
    return float(metrics.get_meter("train", "gnorm").val)


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _agreed(decision: Decision | None) -> Decision | None:
    """Return the first rank's decision."""
    if not _distributed():
        return decision
    box = [decision]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def _compare_ranks(schedule: Schedule, update: int) -> None:
    """Check that all ranks have the same schedule state.

    Raises:
        SharingError: if their states differ.
    """
    if not _distributed():
        return
    written = json.dumps(schedule.state_dict(), default=torch.Tensor.tolist, sort_keys=True)
    mine = hashlib.sha256(written.encode()).hexdigest()
    theirs: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(theirs, mine)
    if len(set(theirs)) > 1:
        raise SharingError(f"the ranks disagree on the state of the schedule after update {update}")


@functools.cache
def _writer(folder: Path) -> Any:
    """Open a TensorBoard writer, once per folder; None without TensorBoard, which fairseq reports itself."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))


def _draw(folder: Path, change: Mapping[str, Any]) -> None:
    """Write a change to TensorBoard: the parameter set of each layer over updates, and the reason."""
    writer = _writer(folder / "sharing")
    if writer is None:
        return
    for moment, update in (("before", change["update"] - 1), ("after", change["update"])):
        for stack, shared in change[moment].items():
            if stack == "parameters":
                writer.add_scalar("parameters", shared, update)
                continue
            for layer, label in enumerate(shared["layer_map"], 1):
                writer.add_scalar(f"{stack}_map/layer_{layer:02d}", label + 1, update)
    writer.add_text("reason", change["reason"], change["update"])
    writer.flush()
