"""The operations of a Universal Transformer between layers: depth signal, positions at every depth, and halting.

They are implemented as forward hooks, so they work with any layer, layer map and activation checkpointing.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from fairseq_sharing.universal.act import AdaptiveComputationTime, Ponder
from fairseq_sharing.universal.depth_signal import DepthSignal


class DepthSteps:
    """Mixin for a fairseq Transformer stack, encoder or decoder.

    Source: Dehghani et al. 2019, "Universal Transformers", Sections 2.1 and 2.2.
    """

    layers: nn.ModuleList
    embed_positions: nn.Module
    active: tuple[int, ...]  # the layers that run
    _positions: Tensor | None = None  # B x T x C
    _ponder: Ponder | None = None

    def add_depth_steps(self, cfg: Any, stack: str) -> None:
        """Add the hooks that the options select to the layers. Call this after the layers are built.

        Args:
            cfg: fairseq's TransformerConfig with the sharing options.
            stack: ``encoder`` or ``decoder``.
        """
        num_layers, embed_dim = len(self.layers), getattr(cfg, stack).embed_dim
        self.depth_signal, self.halting = None, None
        if cfg.depth_signal != "off":
            self.depth_signal = DepthSignal(cfg.depth_signal, num_layers, embed_dim)
        if cfg.act in (stack, "both"):
            self.halting = AdaptiveComputationTime(embed_dim, num_layers, cfg.act_epsilon)
        self._adds_positions = bool(cfg.position_per_depth)
        if self._adds_positions:
            self.embed_positions.register_forward_hook(self._keep_positions)
        if self.depth_signal is None and self.halting is None and not self._adds_positions:
            return
        for depth, layer in enumerate(self.layers):
            layer.register_forward_pre_hook(partial(self._enter, depth), with_kwargs=True)
            layer.register_forward_hook(partial(self._leave, depth))

    def describe_depth_steps(self) -> str:
        """Describe in words what is added to the stack's layers; empty if nothing."""
        parts = []
        if self.depth_signal is not None:
            parts.append(f"depth signal: {self.depth_signal.kind}")
        if self._adds_positions:
            parts.append("positions added at every depth")
        if self.halting is not None:
            parts.append(f"ACT: halts at a sum of {self.halting.threshold:g}, at most {len(self.layers)} steps")
        return "; ".join(parts)

    def take_ponder(self) -> Ponder | None:
        """Return and clear the ponder cost of the last forward pass; None without ACT."""
        ponder, self._ponder = self._ponder, None
        return ponder

    def _keep_positions(self, _module, _args, positions: Tensor) -> None:
        self._positions = positions

    def _enter(self, depth: int, _layer, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        state, *others = args  # T x B x C
        entering = state
        if (
            self._positions is not None and depth != self.active[0]
        ):  # the embedding already adds them at the first depth
            entering = entering + self._positions[:, -state.size(0) :].transpose(0, 1)
        if self.depth_signal is not None:
            entering = self.depth_signal(entering, depth)
        if self.halting is not None:
            if depth == 0:
                # fairseq's names for the padding mask of the inputs of an encoder and of a decoder
                self.halting.begin(state, kwargs.get("encoder_padding_mask", kwargs.get("self_attn_padding_mask")))
            self.halting.enter(state, entering, depth)
        return (entering, *others), kwargs

    def _leave(self, depth: int, _layer, _args: tuple, made: Any) -> Any:
        last = depth == self.active[-1]
        if last:
            self._positions = None
        if self.halting is None:
            return made
        output, *others = made if isinstance(made, tuple) else (made,)
        state = self.halting.leave(output)
        if last:
            state, self._ponder = self.halting.finish()
            state = state.to(output)
        return (state, *others) if isinstance(made, tuple) else state
