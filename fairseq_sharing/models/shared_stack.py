"""Mixins that add layer sharing to a stack and to the model that contains it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fairseq_sharing.adapters.kinds import DepthKinds
from fairseq_sharing.adapters.loading import fit_depth_parameters
from fairseq_sharing.admin.residual import profiling, set_closed_form
from fairseq_sharing.checkpoints.recorded_state import EXTRA_STATE, recorded_extra, recorded_sharing
from fairseq_sharing.checkpoints.sharing_state import (
    explain_mismatch,
    extra_state,
    find_aliases,
    fit_to_model,
    initializing,
)
from fairseq_sharing.depths.model import DepthModel
from fairseq_sharing.depths.stack import DepthStack
from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.run_directory import RunDirectory
from fairseq_sharing.fast.attention import use_fast_attention
from fairseq_sharing.fast.compiled_layer import compile_layers
from fairseq_sharing.fast.dropout import use_fast_dropout
from fairseq_sharing.fast.freed_memory import keep_freed_memory
from fairseq_sharing.fast.precision import warn_of_slow_bf16
from fairseq_sharing.layer_map import STACKS, StackSharing, format_map
from fairseq_sharing.tying import StackBuilder, depth_names, retie_stack, shared_names, tie_stacks
from fairseq_sharing.universal.depth_steps import DepthSteps

logger = logging.getLogger(__name__)


class NotScriptable:
    """Mixin for a module that TorchScript cannot compile: layers that share parameters depend on Python objects."""

    def __prepare_scriptable__(self):
        """Refuse torch.jit.script, which calls this first, also for a module that contains this one.

        Raises:
            SharingError: always.
        """
        raise SharingError(
            f"torch.jit.script: {type(self).__name__} cannot be compiled; allowed: the stock fairseq model that "
            "fairseq-sharing export --materialize writes, or torch.compile (--compile)"
        )


class SharedStack(NotScriptable, DepthStack, DepthSteps):
    """Mixin for a fairseq encoder or decoder whose ``layers`` are tied by a layer map."""

    sharing: StackSharing
    # Layers that do not train until a schedule unfreezes them.
    frozen: tuple[int, ...] = ()
    # Whether the gradient of a shared parameter is the mean over its uses instead of the sum.
    averages_gradients: bool = False
    _gradient_hooks: tuple = ()

    def begin_sharing(self, sharing: StackSharing) -> None:
        """Set the layer map. Call this before the layers are built."""
        self.sharing = sharing
        self._builder = StackBuilder(sharing)

    def build_tied(self, build_layer: Callable[[], nn.Module]) -> nn.Module:
        """Build the next layer with the given function and tie it to its owner."""
        layer = self._builder.build(build_layer)
        if self._builder.done:
            del self._builder
        return layer

    def change_map(self, sharing: StackSharing) -> dict[nn.Parameter, nn.Parameter]:
        """Change the layer map. A layer that becomes independent starts from the values it shared.

        Returns:
            A map from each new Parameter to the Parameter that it was copied from.
        """
        origins = retie_stack(self, self.sharing, sharing)
        self.sharing = sharing
        self.average_gradients(self.averages_gradients)
        return origins

    def freeze(self, layers: tuple[int, ...]) -> None:
        """Freeze these layers, with what belongs to their depth, and unfreeze all others.

        Each layer must own its tied parameters.
        """
        for depth in {*self.frozen, *layers}:
            layer = self.layers[depth]
            for name in [*shared_names(layer, self.sharing.scope), *depth_names(layer)]:
                layer.get_parameter(name).requires_grad_(depth not in layers)
        self.frozen = tuple(layers)

    def average_gradients(self, on: bool) -> None:
        """Use the mean over a shared parameter's uses as its gradient, or the sum."""
        for hook in self._gradient_hooks:
            hook.remove()
        self.averages_gradients = on
        users = self.users_of_parameters() if on else {}
        self._gradient_hooks = tuple(p.register_hook(partial(self._mean, layers)) for p, layers in users.items())

    def _mean(self, layers: tuple[int, ...], gradient: torch.Tensor) -> torch.Tensor:
        return gradient / self.count_active_uses(layers)


class SharingModel(NotScriptable, DepthModel):
    """Mixin for a fairseq model with shared stacks: state dict, Admin, fast path and training precision.

    The state dict contains each shared tensor once, under its first name, and the layer maps. Loading restores the
    other names.
    """

    # Module paths of the stacks.
    stack_names: tuple[str, ...] = STACKS
    # Whether Admin's residual weights must still be set from the first training batch.
    admin_pending: bool = False
    # Opens a run directory for from_pretrained. The package sets it, because it needs the layers above this one.
    open_run: Callable[..., Any]
    # What changed the initial maps, recorded in the checkpoint; None if they are unchanged.
    map_changed_by: str | None = None

    @classmethod
    def hub_models(cls) -> dict[str, str]:
        """Return an empty dict: no pretrained models are published."""
        return {}

    @classmethod
    def from_pretrained(cls, model_name_or_path, checkpoint_file=None, data_name_or_path=None, **options):
        """Load a model and its text preparation from a run directory, or as fairseq does.

        Args:
            model_name_or_path: a run directory of ``fairseq-sharing train``; or fairseq's directory of a model.
            checkpoint_file: a file in it; for a run directory, the average of its last epochs if not given.
            data_name_or_path: as in fairseq; for a run directory, its prepared data if they moved.
            options: as in fairseq, which then uses only the text preparation that they give.

        Returns:
            fairseq's hub interface. That of a run directory translates plain text as ``fairseq-sharing translate``.

        Raises:
            SharingError: the run has no checkpoints, or its data moved.
        """
        is_run = RunDirectory(Path(model_name_or_path)).config_file.is_file()
        if is_run and not options and (checkpoint_file is None or data_name_or_path is None):
            return cls.open_run(model_name_or_path, checkpoint_file, data_name_or_path)
        return super().from_pretrained(
            model_name_or_path, checkpoint_file or "model.pt", data_name_or_path or ".", **options
        )

    def watch_state_dict(self) -> None:
        """Tie sets across stacks; remove aliases when saving and restore them when loading. Call this when built."""
        if any(sharing.spans_stacks for sharing in self.sharing.values()):
            tie_stacks(self.stacks, self.sharing)
        self.register_state_dict_post_hook(SharingModel._drop_aliases)
        self.register_load_state_dict_pre_hook(SharingModel._fit_state)

    @property
    def sharing(self) -> dict[str, StackSharing]:
        """The sharing of each stack of the model."""
        return {name: stack.sharing for name, stack in self.stacks.items()}

    @property
    def stacks(self) -> dict[str, SharedStack]:
        """The stacks of the model."""
        return {name: self.get_submodule(name) for name in self.stack_names if hasattr(self, name.split(".")[0])}

    def get_extra_state(self) -> dict[str, Any]:
        """Return the sharing metadata of the state dict: plain lists and strings."""
        state = extra_state(self.sharing, find_aliases(self))
        if self.map_changed_by:
            state["map_changed_by"] = self.map_changed_by
        frozen = {name: list(stack.frozen) for name, stack in self.stacks.items() if stack.frozen}
        if frozen:
            state["frozen"] = frozen
        if self.admin_pending:
            state["admin_pending"] = True
        if self.depths is not None:
            state["depths"] = [dict(setting) for setting in self.depths.settings]
        if kinds := DepthKinds.read(self.cfg):
            state["depth"] = kinds.record
        return state

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Do nothing: ``_fit_state`` has already read the metadata, before the weights."""

    def _drop_aliases(self, state, prefix: str, _metadata) -> None:
        for name in find_aliases(self):
            state.pop(prefix + name, None)

    def _fit_state(self, state, prefix: str, *_unused) -> None:
        assert not prefix, "a shared model is the root of its state dict"
        extra, recorded = recorded_extra(state), recorded_sharing(state)
        # fit_to_model rejects a stack with a different number of layers.
        fitting = [n for n, s in self.stacks.items() if n in recorded and len(recorded[n].layer_map) == len(s.layers)]
        if extra and not initializing.get():
            for name in fitting:
                self.stacks[name].freeze(tuple(extra.get("frozen", {}).get(name, ())))
        changed_by = extra.get("map_changed_by")
        if changed_by:
            for stack in fitting:
                sharing = recorded[stack]
                if sharing != self.sharing[stack]:
                    self.stacks[stack].change_map(sharing)
                    logger.info(f"{stack} map of the checkpoint: {format_map(sharing.layer_map)} ({changed_by})")
            self.map_changed_by = changed_by
        fit_to_model(state, self.sharing, find_aliases(self))
        found = DepthKinds.recorded(extra.get("depth", {}))
        wanted = DepthKinds.read(self.cfg)
        fit_depth_parameters(state, found, wanted, self.stacks, self.sharing, initializing.get())
        self.admin_pending = bool(state[EXTRA_STATE].get("admin_pending"))

    def load_state_dict(self, state_dict, strict=True, model_cfg=None, args=None):
        """Load a state dict of this model or of plain fairseq, or a materialized one.

        Raises:
            SharingError: if its layer map, size or tensors differ from the model's.
        """
        try:
            return super().load_state_dict(state_dict, strict=strict, model_cfg=model_cfg, args=args)
        except RuntimeError as error:
            raise SharingError(explain_mismatch(error)) from error

    def start_admin(self, admin: str) -> None:
        """Set Admin's residual weights if that needs no data; otherwise set them from the first training batch."""
        self.admin_pending = admin == "profile"
        if admin == "closed_form":
            for stack in self.stacks.values():
                set_closed_form(stack.layers)

    def profile_admin(self, forward: Callable[[], object]) -> None:
        """Set Admin's residual weights from the first training batch, once and equally on all ranks.

        Args:
            forward: runs the model on that batch.
        """
        if not self.training or not self.admin_pending:
            return
        stacks = list(self.stacks.values())
        with torch.no_grad(), profiling(stacks), self.whole_depth():
            forward()
        if torch.distributed.is_initialized():
            for stack in stacks:
                for layer in stack.layers:
                    torch.distributed.broadcast(layer.residual_weight.data, src=0)
        self.admin_pending = False

    def start_fast(self, options: Any) -> None:
        """Enable fast dropout and attention, and compiled layers, as the options say. Call this on the built model."""
        if options.fast:
            use_fast_dropout(self)
            use_fast_attention(self)
        if options.compile:
            compile_layers(self)

    def with_ponder(self, output: tuple[Any, dict[str, Any]]) -> tuple[Any, dict[str, Any]]:
        """Add the ponder cost of each stack with ACT to the model's output, for the criterion."""
        spent = {name: stack.take_ponder() for name, stack in self.stacks.items()}
        ponder = {stack: cost for stack, cost in spent.items() if cost is not None}
        return (output[0], {**output[1], "ponder": ponder}) if ponder else output

    def training_autocast(self) -> AbstractContextManager[None]:
        """Return an autocast context for ``--precision bf16``, which applies to training only."""
        if not self.training or getattr(self.cfg, "precision", "fp32") != "bf16":
            return nullcontext()
        device = next(self.parameters()).device.type
        warn_of_slow_bf16(device)
        if device == "cpu":
            keep_freed_memory()
        # With a cached cast, the gradients of all layers that share a weight would be summed in bf16.
        return torch.autocast(device, dtype=torch.bfloat16, cache_enabled=False)
