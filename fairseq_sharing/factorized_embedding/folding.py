"""Multiply factorized embeddings out, for an engine that has plain embeddings only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from fairseq_sharing.factorized_embedding.embedding import FactorizedEmbedding, OutputFactor


@contextmanager
def multiplied_out(model: Any) -> Iterator[None]:
    """Temporarily replace the factorized embeddings of a model, and tied output layers, by V x d matrices.

    Tied embeddings get the same matrix.
    """
    kept: list[tuple[Any, str, Any]] = []
    plain: dict[FactorizedEmbedding, nn.Embedding] = {}

    def replace(module: Any, name: str, new: Any) -> None:
        kept.append((module, name, getattr(module, name)))
        setattr(module, name, new)

    try:
        for stack in (model.encoder, model.decoder):
            factorized = getattr(stack, "embed_tokens", None)
            if not isinstance(factorized, FactorizedEmbedding):
                continue
            if factorized not in plain:
                plain[factorized] = nn.Embedding.from_pretrained(factorized.projection(factorized.weight))
            replace(stack, "embed_tokens", plain[factorized])
            if isinstance(getattr(stack, "project_out_dim", None), OutputFactor):
                vocabulary, width = plain[factorized].weight.shape
                output = nn.Linear(width, vocabulary, bias=False, device="meta")
                output.weight = plain[factorized].weight
                replace(stack, "output_projection", output)
                replace(stack, "project_out_dim", None)
        yield
    finally:
        for module, name, old in reversed(kept):
            setattr(module, name, old)
