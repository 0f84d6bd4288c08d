"""A model that runs at several depths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from fairseq_sharing.depths.active import active_layers
from fairseq_sharing.depths.options import read_depths
from fairseq_sharing.depths.sampling import Depths
from fairseq_sharing.depths.settings import Setting
from fairseq_sharing.depths.stack import KeptPass


class DepthModel:
    """Mixin for a fairseq model with shared stacks.

    In training, each step runs at the depth of ``draw_depth``. In evaluation, the depth is that of ``use_depth``, by
    default all layers.
    """

    cfg: Any
    stacks: Mapping[str, Any]  # module path of a stack -> the stack
    _update, _micro_batch = -1, 0

    @cached_property
    def depths(self) -> Depths | None:
        """The depths that the model is trained at; None for all layers only."""
        return read_depths(self.cfg, {name: stack.sharing for name, stack in self._by_name.items()})

    @property
    def _by_name(self) -> dict[str, Any]:
        return {path.split(".")[0]: stack for path, stack in self.stacks.items()}

    def use_depth(self, setting: Setting | None) -> None:
        """Set the depth of evaluation.

        Args:
            setting: the number of layers of each stack; a stack that it omits runs all layers, as does None.

        Raises:
            SharingError: a layer map has no such depth.
        """
        self._limit(setting or {}, training=False)

    def draw_depth(self, update: int) -> None:
        """Draw the depth of the next micro-batch; call this once before each.

        fairseq's ``set_num_updates`` cannot draw it: it is also called when a checkpoint is loaded.

        Args:
            update: number of updates so far.
        """
        if self.depths is None or self.depths.aligned:
            return
        self._micro_batch = self._micro_batch + 1 if update == self._update else 0
        self._update = update
        self._limit(self.depths.draw(update, self._micro_batch), training=True)

    @contextmanager
    def whole_depth(self) -> Iterator[None]:
        """Run all layers in the enclosed training passes."""
        stacks = list(self._by_name.values())
        before = [(stack._trained, stack.kept_pass) for stack in stacks]
        for stack in stacks:
            stack._trained = stack.kept_pass = None
        try:
            yield
        finally:
            for stack, (trained, kept) in zip(stacks, before, strict=True):
                stack._trained, stack.kept_pass = trained, kept

    @contextmanager
    def keeping_pass(self, depth: int) -> Iterator[KeptPass]:
        """Run the layers once in the enclosed forward calls, which must have the same inputs.

        Args:
            depth: the depth of the first call.

        Yields:
            The pass. Set its ``depth`` to get the output of another depth of the decoder from the next call.
        """
        kept = KeptPass(depth)
        stacks = list(self._by_name.values())
        for stack in stacks:
            stack.kept_pass = kept
        try:
            yield kept
        finally:
            for stack in stacks:
                stack.kept_pass = None

    def _limit(self, setting: Setting, training: bool) -> None:
        for name, stack in self._by_name.items():
            layer_map = stack.sharing.layer_map
            depth = setting.get(name, len(layer_map))
            whole = depth == len(layer_map)
            stack.limit(None if whole else active_layers(layer_map, depth, f"{name} depth"), training)
