"""The factorized embedding, and the output layer that is tied to it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


class FactorizedEmbedding(nn.Embedding):
    """Token embeddings x = E[token] P with a table E, V x e, and a projection P, e x d.

    V e + e d parameters instead of V d. fairseq scales the result, so the scale sqrt(d) applies after P. The padding
    token's row of E is 0, and so is its embedding.

    Args:
        num_embeddings: V.
        embedding_dim: d, the width of the model.
        factor_dim: e.
        padding_idx: the padding token.

    Shape:
        weight: (V, e).
        projection.weight: (d, e), the transpose of P.

    Source: Lan et al. 2020, "ALBERT", factorized embedding parameterization. The initial values are this project's:
    normal with standard deviation e^(-1/2) for E, and Xavier-uniform for P.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, factor_dim: int, padding_idx: int):
        super().__init__(num_embeddings, factor_dim, padding_idx)
        self.embedding_dim = embedding_dim  # fairseq reads the width of the model here
        self.projection = nn.Linear(factor_dim, embedding_dim, bias=False)
        nn.init.normal_(self.weight, std=factor_dim**-0.5)
        nn.init.zeros_(self.weight[padding_idx])
        nn.init.xavier_uniform_(self.projection.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed tokens of any shape: (*) -> (*, d)."""
        return self.projection(super().forward(tokens))


class OutputFactor(nn.Module):
    """Project features to the width of the table, (*, d) -> (*, e), with the parameters of its projection."""

    def __init__(self, projection: nn.Linear):
        super().__init__()
        self.weight = projection.weight

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by the transpose of P."""
        return F.linear(x, self.weight.t())


def tie_output_factor(decoder: Any) -> None:
    """Complete the tied output layer of a decoder with factorized embeddings: scores = x P^T E^T.

    fairseq has tied the matrix of the output projection to E. Call this after the decoder is built.
    """
    if isinstance(decoder.embed_tokens, FactorizedEmbedding) and decoder.share_input_output_embed:
        decoder.project_out_dim = OutputFactor(decoder.embed_tokens.projection)
