"""fairseq's Transformer layers with B2T connections."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class B2T:
    """Mixin for a fairseq post-norm layer whose last LayerNorm also gets the layer's input: LN(x_in + x + FFN(x)).

    Source: Takase et al. 2022, "On Layer Normalizations and Residual Connections in Transformers".
    """

    _bottom: Tensor | None = None
    _sublayers_left = 0

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the layer and remember its input until its last sub-layer."""
        source = args[0] if args else kwargs.get("encoder_out")
        attends = getattr(self, "encoder_attn", None) is not None and source is not None
        self._bottom, self._sublayers_left = x, 3 if attends else 2
        made = super().forward(x, *args, **kwargs)  # type: ignore[misc]
        self._bottom = None
        return made

    def residual_connection(self, x: Tensor, residual: Tensor) -> Tensor:
        """Add the output of a sub-layer to its input and, in the last sub-layer, to the layer's input: (T, B, C).

        fairseq calls this once per sub-layer, in order, without an index, so the layer counts.
        """
        self._sublayers_left -= 1
        added = super().residual_connection(x, residual)  # type: ignore[misc]
        return added if self._sublayers_left or self._bottom is None else self._bottom + added
