"""Fit low-rank adapters to trained matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from fairseq_sharing.adapters.layer import INITIAL_STD

# Singular values of a residual below this fraction of the matrix's largest entry are rounding errors.
_ROUNDING = 1e-6


def fit_adapters(
    targets: list[Tensor], shared: Tensor, rank: int, iterations: int, generator: torch.Generator
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Approximate the matrices of the depths that share one by W + B A.

    Each adapter is the best one for the shared matrix: the truncated singular value decomposition of the residual,
    with the square roots of the singular values in both factors. An iteration replaces the shared matrix by the mean
    of what the adapters leave; the squared error never rises.

    Directions without a residual start as in a new model, A random and B zero, because two zeros would get no gradient.

    Args:
        targets: the matrix of each depth, d_out x d_in.
        shared: the initial shared matrix.
        rank: r, at most the smaller dimension.
        iterations: number of alternations.
        generator: source of the random directions.

    Returns:
        The shared matrix, in its type, and A (r x d_in) and B (d_out x r) of each depth.

    Source: Bae et al. 2025, "Relaxed Recursive Transformers", initialization by singular value decomposition.
    """
    matrices = [target.double() for target in targets]
    for _ in range(iterations):
        rests = [w - _product(*_decompose(w, shared, rank)) for w in matrices]
        shared = torch.stack(rests).mean(0).to(shared.dtype)
    factors = [_decompose(w, shared, rank, generator) for w in matrices]
    return shared, [(a.to(shared.dtype), b.to(shared.dtype)) for a, b in factors]


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Multiply the factors of an adapter: B A."""
    return b @ a


def _decompose(
    target: Tensor, shared: Tensor, rank: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    u, s, vt = torch.linalg.svd(target - shared.double(), full_matrices=False)
    root = s[:rank].sqrt()
    a, b = root[:, None] * vt[:rank], u[:, :rank] * root
    if generator is not None:
        unused = s[:rank] <= _ROUNDING * float(target.abs().max())
        a[unused] = INITIAL_STD * torch.randn(a.shape, generator=generator, dtype=a.dtype)[unused]
        b[:, unused] = 0
    return a, b
