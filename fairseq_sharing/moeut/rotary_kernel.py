"""Triton kernel that rotates queries or keys: one read and one write instead of a dozen torch operations."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fairseq_sharing.moeut.kernels import on_its_device

_TURNED = 1024  # channels that a program rotates


@triton.jit
def _turn_kernel(  # type: ignore[no-untyped-def]
    x,
    cos,
    sin,
    out,
    lines,
    heads,
    length,
    width,
    half,
    x_batch,
    x_head,
    x_time,
    out_batch,
    out_head,
    out_time,
    BACK: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    line = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    time = line % length
    head = line // length % heads
    batch = line // length // heads
    column = tl.arange(0, WIDTH)
    turned = column < 2 * half
    partner = tl.where(column < half, column + half, column - half)
    angle = tl.where(column < half, column, column - half)
    row = x + (batch * x_batch + head * x_head + time * x_time)[:, None]
    real = (line < lines)[:, None] & (column < width)[None, :]
    inside = (line < lines)[:, None] & turned[None, :]
    value = tl.load(row + column[None, :], mask=real, other=0.0).to(tl.float32)
    other = tl.load(row + partner[None, :], mask=inside, other=0.0).to(tl.float32)
    at = time[:, None] * half + angle[None, :]
    c = tl.load(cos + at, mask=inside, other=1.0)
    s = tl.load(sin + at, mask=inside, other=0.0)
    if BACK:
        s = -s
    y = value * c + tl.where(column < half, -1.0, 1.0)[None, :] * other * s
    to = out + (batch * out_batch + head * out_head + time * out_time)[:, None] + column[None, :]
    tl.store(to, y.to(out.dtype.element_ty), mask=real)


@on_its_device
def turn(x: Tensor, cos: Tensor, sin: Tensor, back: bool = False) -> Tensor:
    """Rotate the first channels forward or back.

    Args:
        x: (B, H, T, head_dim), with contiguous channels.
        cos: cosines of the angles, fp32, (T, width / 2), contiguous.
        sin: sines of the angles, the same.
        back: rotate by the negative angles.

    Returns:
        (B, H, T, head_dim), with the memory layout of ``x``.
    """
    out = torch.empty_like(x)
    batch, heads, length, width = x.shape
    columns = triton.next_power_of_2(width)
    rows = max(1, _TURNED // columns)
    lines = batch * heads * length
    _turn_kernel[(triton.cdiv(lines, rows),)](
        x,
        cos,
        sin,
        out,
        lines,
        heads,
        length,
        width,
        cos.size(1),
        *x.stride()[:3],
        *out.stride()[:3],
        BACK=back,
        ROWS=rows,
        WIDTH=columns,
    )
    return out
