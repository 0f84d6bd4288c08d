"""Rotary positions: queries and keys are rotated by angles proportional to the position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fairseq_sharing.moeut.kernels import has_kernels

BASE = 10_000.0  # Su et al. 2021, RoFormer, section 3.2.2

# cos and sin of the angles, each (positions, width / 2).
Rotation = tuple[Tensor, Tensor]


def default_width(head_dim: int) -> int:
    """Return the number of a head's channels that MoEUT rotates: half of them, rounded down to an even number."""
    return head_dim // 2 // 2 * 2


def rotation(start: int, length: int, width: int, device: torch.device | str | None = None) -> Rotation:
    """Compute the angles of consecutive positions: pos * BASE ** (-2 j / width) for channel pair j.

    Args:
        start: the first position.
        length: number of positions.
        width: rotated channels of a head, even.
        device: device of the result.

    Returns:
        Their cosines and sines, (length, width / 2), fp32.

    Source: Su et al. 2021, RoFormer, equation 15.
    """
    frequencies = BASE ** (-torch.arange(0, width, 2, device=device, dtype=torch.float32) / max(width, 1))
    positions = torch.arange(start, start + length, device=device, dtype=torch.float32)
    angles = positions[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, turn: Rotation) -> Tensor:
    """Rotate the first channels of queries or keys; the others stay unchanged.

    Channel j is paired with channel j + width / 2 ("rotate-half").

    Args:
        x: (..., T, head_dim).
        turn: angles of the T positions.

    Returns:
        (..., T, head_dim), in the precision of ``x``.
    """
    cos, sin = turn
    if x.is_cuda and x.dim() == 4 and x.stride(-1) == 1 and x.dtype != torch.float64 and has_kernels("cuda"):
        return _Rotate.apply(x, cos, sin)
    half = cos.size(-1)
    first, second, rest = x.float().split([half, half, x.size(-1) - 2 * half], dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1).to(x.dtype)


class _Rotate(torch.autograd.Function):
    """``rotate`` with a kernel; the gradient is rotated back."""

    @staticmethod
    def forward(ctx: Any, x, cos, sin):  # type: ignore[no-untyped-def]
        from fairseq_sharing.moeut import rotary_kernel

        ctx.save_for_backward(cos, sin)
        return rotary_kernel.turn(x, cos, sin)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy):  # type: ignore[no-untyped-def]
        from fairseq_sharing.moeut import rotary_kernel

        dy = dy if dy.stride(-1) == 1 else dy.contiguous()
        return rotary_kernel.turn(dy, *ctx.saved_tensors, back=True), None, None
