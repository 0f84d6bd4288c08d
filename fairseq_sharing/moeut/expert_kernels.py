"""Triton kernels for expert banks: matrix products that gather their rows on load, and weighted sums.

Nothing is copied between routing and sum. Rows stay in token order, and a program that multiplies by an expert looks up
the rows of its pairs in ``Dispatch.order``. No kernel uses atomic additions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from fairseq_sharing.moeut.kernels import on_its_device

if TYPE_CHECKING:
    from fairseq_sharing.moeut.experts import Dispatch

TILE = 128  # pairs of one expert that a program multiplies
_COLUMNS = 128
_DEPTH = 64  # inner dimension per iteration
_WIDE_DEPTH = 128  # up to this inner dimension, a program computes all columns
_WIDE_COLUMNS = 64  # columns per iteration of the wide kernel
_PLACED = 32  # tiles that a program assigns
_SUMMED = 2048  # elements that a program sums


@triton.jit
def _tiles_kernel(  # type: ignore[no-untyped-def]
    ends, tile_expert, tile_start, count, experts, SIZE: tl.constexpr, TILES: tl.constexpr, EXPERTS: tl.constexpr
):
    tile = tl.program_id(0) * TILES + tl.arange(0, TILES)
    expert = tl.arange(0, EXPERTS)
    begin = tl.load(ends + expert - 1, mask=(expert > 0) & (expert < experts), other=0)
    needed = (tl.load(ends + expert, mask=expert < experts, other=0) - begin + SIZE - 1) // SIZE
    needed = tl.where(expert < experts, needed, 0)
    last = tl.cumsum(needed, 0)
    mine = (tile[:, None] >= (last - needed)[None, :]) & (tile[:, None] < last[None, :])
    start = begin[None, :] + (tile[:, None] - (last - needed)[None, :]) * SIZE
    tl.store(tile_expert + tile, tl.sum(tl.where(mine, expert[None, :] + 1, 0), axis=1) - 1, mask=tile < count)
    tl.store(tile_start + tile, tl.sum(tl.where(mine, start, 0), axis=1), mask=tile < count)


@triton.jit
def _deep_kernel(  # type: ignore[no-untyped-def]
    x,
    bank,
    out,
    order,
    tile_expert,
    tile_start,
    ends,
    depth,
    columns,
    x_row,
    bank_expert,
    bank_depth,
    bank_column,
    READERS: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Multiply the rows of a tile by a block of columns."""
    blocks = tl.cdiv(columns, COLUMNS)
    tile = tl.program_id(0) // blocks
    expert = tl.load(tile_expert + tile)
    if expert >= 0:
        place = tl.load(tile_start + tile) + tl.arange(0, ROWS)
        real = place < tl.load(ends + expert)
        pair = tl.load(order + place, mask=real, other=0)  # masked entries read pair 0; their results are not stored
        column = (tl.program_id(0) % blocks) * COLUMNS + tl.arange(0, COLUMNS)
        at = tl.arange(0, DEPTH)
        left = x + (pair // READERS)[:, None] * x_row + at[None, :]
        right = bank + expert.to(tl.int64) * bank_expert + at[:, None] * bank_depth + column[None, :] * bank_column
        total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for begin in range(0, depth, DEPTH):
            if EVEN:
                rows = tl.load(left)
                matrix = tl.load(right)
            else:
                inside = begin + at < depth
                rows = tl.load(left, mask=inside[None, :], other=0.0)
                matrix = tl.load(right, mask=inside[:, None] & (column < columns)[None, :], other=0.0)
            total = tl.dot(rows, matrix, total, input_precision="ieee")
            left += DEPTH
            right += DEPTH * bank_depth
        y = total.to(out.dtype.element_ty)
        tl.store(out + pair[:, None] * columns + column[None, :], y, mask=real[:, None] & (column < columns)[None, :])


@triton.jit
def _wide_kernel(  # type: ignore[no-untyped-def]
    x,
    bank,
    out,
    order,
    tile_expert,
    tile_start,
    ends,
    depth,
    columns,
    x_row,
    bank_expert,
    bank_depth,
    bank_column,
    READERS: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Multiply the rows of a tile, read once, by all columns: the product is too short to split among programs."""
    tile = tl.program_id(0)
    expert = tl.load(tile_expert + tile)
    if expert >= 0:
        place = tl.load(tile_start + tile) + tl.arange(0, ROWS)
        real = place < tl.load(ends + expert)
        pair = tl.load(order + place, mask=real, other=0)
        column = tl.arange(0, COLUMNS)
        at = tl.arange(0, DEPTH)
        left = x + (pair // READERS)[:, None] * x_row + at[None, :]
        right = bank + expert.to(tl.int64) * bank_expert + at[:, None] * bank_depth + column[None, :] * bank_column
        to = out + pair[:, None] * columns + column[None, :]
        rows = tl.load(left, mask=(at < depth)[None, :], other=0.0)
        for begin in range(0, columns, COLUMNS):
            if EVEN:
                matrix = tl.load(right)
                stored = real[:, None]
            else:
                inside = begin + column < columns
                matrix = tl.load(right, mask=(at < depth)[:, None] & inside[None, :], other=0.0)
                stored = real[:, None] & inside[None, :]
            total = tl.dot(rows, matrix, input_precision="ieee")
            tl.store(to, total.to(out.dtype.element_ty), mask=stored)
            right += COLUMNS * bank_column
            to += COLUMNS


@triton.jit
def _outer_kernel(  # type: ignore[no-untyped-def]
    left,
    right,
    sums,
    order,
    ends,
    height,
    width,
    left_row,
    right_row,
    LEFT_READERS: tl.constexpr,
    RIGHT_READERS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    blocks = tl.cdiv(width, WIDTH)
    expert = tl.program_id(0) // (tl.cdiv(height, HEIGHT) * blocks)
    block = tl.program_id(0) % (tl.cdiv(height, HEIGHT) * blocks)
    i = (block // blocks) * HEIGHT + tl.arange(0, HEIGHT)
    j = (block % blocks) * WIDTH + tl.arange(0, WIDTH)
    begin = 0
    if expert > 0:
        begin = tl.load(ends + expert - 1)
    end = tl.load(ends + expert)
    total = tl.zeros((HEIGHT, WIDTH), dtype=tl.float32)
    for start in range(begin, end, ROWS):
        place = start + tl.arange(0, ROWS)
        real = place < end
        pair = tl.load(order + place, mask=real, other=0)
        a = tl.load(
            left + (pair // LEFT_READERS)[:, None] * left_row + i[None, :],
            mask=real[:, None] & (i < height)[None, :],
            other=0.0,
        )
        b = tl.load(
            right + (pair // RIGHT_READERS)[:, None] * right_row + j[None, :],
            mask=real[:, None] & (j < width)[None, :],
            other=0.0,
        )
        total = tl.dot(a.T, b, total, input_precision="ieee")
    out = sums + expert.to(tl.int64) * height * width + i[:, None] * width + j[None, :]
    tl.store(out, total.to(sums.dtype.element_ty), mask=(i < height)[:, None] & (j < width)[None, :])


@triton.jit
def _gate_kernel(  # type: ignore[no-untyped-def]
    rows,
    products,
    gates,
    gated,
    dgates,
    count,
    width,
    READERS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    real = (pair < count)[:, None] & (column < width)[None, :]
    row = tl.load(rows + (pair // READERS)[:, None] * width + column[None, :], mask=real, other=0.0).to(tl.float32)
    at = pair[:, None] * width + column[None, :]
    product = tl.load(products + at, mask=real, other=0.0).to(tl.float32)
    gate = tl.load(gates + pair, mask=pair < count, other=0.0)
    tl.store(dgates + pair, tl.sum(row * product, axis=1), mask=pair < count)
    tl.store(gated + at, (row * gate[:, None]).to(gated.dtype.element_ty), mask=real)


@triton.jit
def _sum_kernel(  # type: ignore[no-untyped-def]
    rows, gates, out, count, width, EACH: tl.constexpr, GATED: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    blocks = tl.cdiv(width, WIDTH)
    row = (tl.program_id(0) // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = (tl.program_id(0) % blocks) * WIDTH + tl.arange(0, WIDTH)
    real = (row < count)[:, None] & (column < width)[None, :]
    total = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    for one in tl.static_range(EACH):
        value = tl.load(rows + (row * EACH + one)[:, None] * width + column[None, :], mask=real, other=0.0)
        value = value.to(tl.float32)
        if GATED:
            value *= tl.load(gates + row * EACH + one, mask=row < count, other=0.0)[:, None]
        total += value
    tl.store(out + row[:, None] * width + column[None, :], total.to(out.dtype.element_ty), mask=real)


@on_its_device
def tiles(ends: Tensor, pairs: int) -> tuple[Tensor, Tensor]:
    """Split the sorted pairs of each expert into tiles, one per program.

    Args:
        ends: end of each expert's pairs, (E,), int32.
        pairs: M.

    Returns:
        Expert (-1 for unused tiles) and first pair of each tile, (M // TILE + E,), int32. This is the maximum number of
        tiles, so that the actual number need not be read back from the GPU.
    """
    experts = len(ends)
    count = pairs // TILE + min(experts, pairs)
    tile_expert, tile_start = (ends.new_empty(count) for _ in range(2))
    columns = triton.next_power_of_2(experts)
    _tiles_kernel[(triton.cdiv(count, _PLACED),)](
        ends, tile_expert, tile_start, count, experts, SIZE=TILE, TILES=_PLACED, EXPERTS=columns
    )
    return tile_expert, tile_start


@on_its_device
def multiply(x: Tensor, bank: Tensor, dispatch: Dispatch, readers: int, transposed: bool = False) -> Tensor:
    """Multiply each pair's row by the matrix of its expert.

    Args:
        x: rows, (M / readers, in), contiguous.
        bank: (E, in, out), or (E, out, in) if transposed.
        dispatch: dispatch of M pairs.
        readers: pairs that read one row.
        transposed: multiply by the transposed matrices.

    Returns:
        (M, out), in token order.
    """
    if transposed:
        bank = bank.transpose(1, 2)
    depth, columns = bank.shape[1:]
    out = torch.empty(dispatch.experts.numel(), columns, device=x.device, dtype=x.dtype)
    tile_expert, tile_start = dispatch.tiles
    wide = depth <= _WIDE_DEPTH
    kernel = _wide_kernel if wide else _deep_kernel
    block = _WIDE_COLUMNS if wide else _COLUMNS
    step = max(16, triton.next_power_of_2(depth)) if wide else _DEPTH
    kernel[(len(tile_expert) * (1 if wide else triton.cdiv(columns, block)),)](
        x,
        bank,
        out,
        dispatch.order,
        tile_expert,
        tile_start,
        dispatch.ends,
        depth,
        columns,
        x.stride(0),
        *bank.stride(),
        READERS=readers,
        EVEN=depth % step == 0 and columns % block == 0,
        ROWS=TILE,
        COLUMNS=block,
        DEPTH=step,
        num_warps=8,
        num_stages=4 if wide else 3,
    )
    return out


@on_its_device
def outer(
    left: Tensor,
    right: Tensor,
    dispatch: Dispatch,
    left_readers: int,
    right_readers: int,
    dtype: torch.dtype,
) -> Tensor:
    """Sum the outer products of each expert's pairs.

    Args:
        left: rows, (M / left_readers, in), contiguous.
        right: rows, (M / right_readers, out), contiguous.
        dispatch: dispatch of M pairs.
        left_readers: pairs that read one row of ``left``.
        right_readers: pairs that read one row of ``right``.
        dtype: type of the sums.

    Returns:
        (E, in, out).
    """
    height, width = left.size(1), right.size(1)
    sums = torch.empty(dispatch.num_experts, height, width, device=left.device, dtype=dtype)
    grid = (dispatch.num_experts * triton.cdiv(height, _COLUMNS) * triton.cdiv(width, _COLUMNS),)
    _outer_kernel[grid](
        left,
        right,
        sums,
        dispatch.order,
        dispatch.ends,
        height,
        width,
        left.stride(0),
        right.stride(0),
        LEFT_READERS=left_readers,
        RIGHT_READERS=right_readers,
        HEIGHT=_COLUMNS,
        WIDTH=_COLUMNS,
        ROWS=_DEPTH,
        num_warps=8,
        num_stages=5,  # two of them load the pairs, which are needed before the rows
    )
    return sums


@on_its_device
def gate(rows: Tensor, products: Tensor, gates: Tensor, readers: int) -> tuple[Tensor, Tensor]:
    """Weight each pair's row by its gate, and compute the gradient of the gate.

    Args:
        rows: (M / readers, C), contiguous.
        products: factors of the pairs' rows in that gradient, (M, C), contiguous.
        gates: gates of M pairs, contiguous.
        readers: pairs that read one row.

    Returns:
        gates[p] * rows[p // readers], (M, C); sum_c rows[p // readers, c] * products[p, c], like ``gates``.
    """
    gated, dgates = torch.empty_like(products), torch.empty_like(gates)
    count, width = products.shape
    columns = triton.next_power_of_2(width)
    lines = max(1, _SUMMED // columns)
    _gate_kernel[(triton.cdiv(count, lines),)](
        rows, products, gates, gated, dgates, count, width, READERS=readers, ROWS=lines, WIDTH=columns
    )
    return gated, dgates


@on_its_device
def weighed_sum(rows: Tensor, each: int, gates: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Sum groups of adjacent rows, each weighted by its gate, in fp32.

    Args:
        rows: (M, C), contiguous.
        each: rows per sum.
        gates: (M,); all 1 if None.
        dtype: type of the sums.

    Returns:
        (M / each, C).
    """
    width = rows.size(1)
    out = torch.empty(len(rows) // each, width, device=rows.device, dtype=dtype)
    columns = min(triton.next_power_of_2(width), _SUMMED)
    lines = _SUMMED // columns
    grid = (triton.cdiv(len(out), lines) * triton.cdiv(width, columns),)
    _sum_kernel[grid](
        rows,
        rows if gates is None else gates,
        out,
        len(out),
        width,
        EACH=each,
        GATED=gates is not None,
        ROWS=lines,
        WIDTH=columns,
    )
    return out
