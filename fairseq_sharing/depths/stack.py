"""A stack that runs some of its layers, and the exits of one pass through it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fairseq_sharing.depths.active import Layers


class RunningLayers(nn.ModuleList):
    """The layers of a stack. Iteration can be limited to some; names, indexing and length are those of all layers."""

    running: Layers | None = None

    def __iter__(self) -> Iterator[nn.Module]:
        """Iterate over the layers that run."""
        if self.running is None:
            return super().__iter__()
        return iter([self[layer] for layer in self.running])


@dataclass
class KeptPass:
    """One forward pass through all layers, whose states serve several depths of the decoder.

    Attributes:
        depth: the depth whose output is asked for.
        encoded: the encoder's output; None before the pass.
        states: the input of the decoder's layers and their outputs, (T, B, C); None before the pass.
        extra: other outputs of the decoder.
    """

    depth: int
    encoded: Any = None
    states: list[Tensor] | None = None
    extra: Any = None


class DepthStack:
    """Mixin for a fairseq encoder or decoder with shared layers.

    Evaluation and training have separate depths, so that a validation does not use the depth of a training step.
    """

    layers: nn.ModuleList
    training: bool
    kept_pass: KeptPass | None = None
    _evaluated: Layers | None = None
    _trained: Layers | None = None

    def limit(self, active: Layers | None, training: bool) -> None:
        """Set the layers that run in evaluation or in training; None for all."""
        if training:
            self._trained = active
        else:
            self._evaluated = active

    @property
    def limited_to(self) -> Layers | None:
        """The layers that run now; None for all."""
        return self._trained if self.training else self._evaluated

    @property
    def active(self) -> Layers:
        """The layers that run now."""
        limited = self.limited_to
        return tuple(range(len(self.layers))) if limited is None else limited

    @contextmanager
    def only_active(self) -> Iterator[None]:
        """Limit iteration over ``layers`` to the layers that run, for one forward pass of the stack."""
        active = self.limited_to
        if active is None:
            yield
            return
        if not isinstance(self.layers, RunningLayers):
            self.layers = RunningLayers(self.layers)
        self.layers.running = active
        try:
            yield
        finally:
            self.layers.running = None

    def count_active_uses(self, layers: Layers) -> int:
        """Count how many of these layers run now; at least 1."""
        return max(1, len(set(layers) & set(self.active)))

    def users_of_parameters(self) -> dict[nn.Parameter, Layers]:
        """Return the layers that use each shared parameter."""
        users: dict[nn.Parameter, list[int]] = {}
        for depth, layer in enumerate(self.layers):
            for parameter in layer.parameters():
                users.setdefault(parameter, []).append(depth)
        return {parameter: tuple(depths) for parameter, depths in users.items() if len(depths) > 1}


class DepthEncoder(DepthStack):
    """Mixin for fairseq's Transformer encoder."""

    def forward_scriptable(self, *args: Any, **kwargs: Any) -> Any:
        """Run the active layers; within a kept pass, only once."""
        kept = self.kept_pass
        if kept is not None and kept.encoded is not None:
            return kept.encoded
        with self.only_active():
            encoded = super().forward_scriptable(*args, **kwargs)  # type: ignore[misc]
        if kept is not None:
            kept.encoded = encoded
        return encoded


class DepthDecoder(DepthStack):
    """Mixin for fairseq's Transformer decoder."""

    layer_norm: nn.Module | None
    project_out_dim: nn.Module | None

    def extract_features_scriptable(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Any,
        incremental_state: Any = None,
        full_context_alignment: bool = False,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run the active layers; within a kept pass, run all layers once and return the features of its depth.

        The arguments and results are those of fairseq. Attention weights are by default those of the last active layer.
        """
        kept = self.kept_pass
        if kept is not None and kept.states is not None:
            return self._features_after(kept.states[kept.depth]), kept.extra
        limited = self.limited_to
        if limited is not None:
            asked = limited[-1] if alignment_layer is None else alignment_layer
            # fairseq counts the layers that run.
            alignment_layer = limited.index(asked) if asked in limited else -1
        with self.only_active():
            features, extra = super().extract_features_scriptable(  # type: ignore[misc]
                prev_output_tokens,
                encoder_out,
                incremental_state,
                full_context_alignment,
                alignment_layer,
                alignment_heads,
            )
        if kept is None:
            return features, extra
        kept.states, kept.extra = extra["inner_states"], extra
        return self._features_after(kept.states[kept.depth]), extra

    def _features_after(self, state: Tensor) -> Tensor:
        """Return the features of a state, (T, B, C), after the last layer that runs: (B, T, C)."""
        if self.layer_norm is not None:
            state = self.layer_norm(state)
        features = state.transpose(0, 1)
        return features if self.project_out_dim is None else self.project_out_dim(features)
