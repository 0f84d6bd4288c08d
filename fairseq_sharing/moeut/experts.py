"""Banks of expert matrices: multiply each row by the matrices selected for it, and sum.

``expert_linear`` has four equivalent backends. ``dense`` multiplies by all matrices and masks the result. The others
sort the (row, expert) pairs by expert and multiply each expert's rows at once: ``loop`` in a Python loop, ``grouped``
with ``torch.nn.functional.grouped_mm``, ``triton`` with kernels that gather on load. No backend uses atomic additions:
forward and backward are bitwise reproducible, with or without torch's deterministic mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fairseq_sharing.errors import SharingError
from fairseq_sharing.fast.precision import product_dtype
from fairseq_sharing.moeut.kernels import has_kernels

BACKENDS = ("dense", "loop", "grouped", "triton")
# The dense backend is faster than sorting up to this ratio of all experts to selected ones, and up to this many tokens.
_DENSE_WASTE = {"cpu": 2, "cuda": 5}
_FEW_TOKENS = {"cpu": 64, "cuda": 8192}
_ALIGNMENT = 16  # bytes; grouped_mm requires every stride to be a multiple


@dataclass(frozen=True)
class ExpertOptions:
    """Options that all expert banks of a model have in common.

    Attributes:
        backend: backend of ``expert_linear``; selected by device if None.
        keep_gathered: keep gathered inputs for the backward pass; see ``expert_linear``.
        dropout: probability that an expert cannot be selected for a token during training.
        equal_router_rows: initialize router rows to equal norm, as sigma-MoE prescribes; MoEUT's own runs did not.
        normalized_banks: scale the initial value and output matrices of attention so that each entry has the same norm
            over all experts, as in MoEUT's runs of all sizes except for the smallest.
    """

    backend: str | None = None
    keep_gathered: bool = False
    dropout: float = 0.0
    equal_router_rows: bool = False
    normalized_banks: bool = False


class Dispatch:
    """The experts of each token, and the (token, expert) pairs sorted by expert, computed on demand.

    Args:
        experts: expert of each pair, (tokens, pairs per token).
        num_experts: number of matrices in the bank.
    """

    def __init__(self, experts: Tensor, num_experts: int):
        self.experts, self.num_experts = experts, num_experts

    @cached_property
    def _sorted(self) -> tuple[Tensor, Tensor]:
        return self.experts.flatten().int().sort(stable=True)  # half the bits to sort

    @property
    def order(self) -> Tensor:
        """The pairs sorted by expert, (M,)."""
        return self._sorted[1]

    @cached_property
    def place(self) -> Tensor:
        """Position of each pair in ``order``, (M,)."""
        place = torch.empty_like(self.order)
        place[self.order] = torch.arange(len(place), device=place.device)
        return place

    @cached_property
    def ends(self) -> Tensor:
        """End of each expert's pairs in ``order``, (num_experts,), int32. Computed without synchronizing a GPU."""
        experts = torch.arange(self.num_experts, device=self.experts.device, dtype=torch.int32)
        return torch.searchsorted(self._sorted[0], experts, right=True, out_int32=True)

    @cached_property
    def tiles(self) -> tuple[Tensor, Tensor]:
        """Tiles of the Triton kernels; see ``expert_kernels.tiles``."""
        from fairseq_sharing.moeut import expert_kernels

        return expert_kernels.tiles(self.ends, self.experts.numel())


def choose_backend(
    device: torch.device, shape: torch.Size | tuple[int, int, int], tokens: int, pairs: int, dtype: torch.dtype
) -> str:
    """Select the backend by the measurements of ``benchmarks/moe/speed.py`` and ``benchmarks/moe/attention_banks.py``.

    For few tokens, multiplying by all matrices of a small bank, such as attention's, is faster than sorting. On a GPU
    this holds for any number of tokens if the Triton kernels are not available or would read rows in pieces of less
    than 16 bytes. On a CPU, a loop is faster than padding a bank for grouped_mm.

    Args:
        device: device of the rows.
        shape: shape of the bank, (num_experts, in, out).
        tokens: number of tokens.
        pairs: matrices per token.
        dtype: type of the products.
    """
    aligned = not any(size * dtype.itemsize % _ALIGNMENT for size in shape[1:])
    kernels = device.type == "cuda" and dtype.itemsize == 2 and has_kernels("cuda")
    few = tokens <= _FEW_TOKENS.get(device.type, 0) or (device.type == "cuda" and not (kernels and aligned))
    if few and shape[0] <= _DENSE_WASTE.get(device.type, 0) * pairs:
        return "dense"
    if device.type != "cpu":
        return "triton" if kernels else "grouped"
    return "grouped" if aligned else "loop"


def expert_linear(
    x: Tensor,
    weight: Tensor,
    dispatch: Dispatch,
    gates: Tensor | None = None,
    *,
    outputs: int = 1,
    backend: str | None = None,
    keep_gathered: bool = False,
) -> Tensor:
    """Multiply rows by the expert matrices selected for them, and compute the weighted sum.

    A token has A input rows, P pairs and O output rows. Pair p reads input row p // (P / A) and is added to
    output row p // (P / O): y[t, p // (P / O)] += gates[t, p] * x[t, p // (P / A)] @ weight[experts[t, p]].

    Args:
        x: rows, (tokens * A, in).
        weight: the bank, (num_experts, in, out).
        dispatch: the selected experts, (tokens, P).
        gates: weight of each pair, (tokens, P); all 1 if None.
        outputs: O, a divisor of P.
        backend: one of ``BACKENDS``; selected by device if None.
        keep_gathered: keep each pair's input (P / A times the rows) for the backward pass instead of gathering it
            again. The backends dense and triton never gather.

    Returns:
        (tokens * O, out), in the precision of autocast if enabled, otherwise of ``x``.

    Raises:
        SharingError: if the triton backend is not available on the device.
    """
    kind = x.device.type
    dtype = product_dtype(x)
    tokens, pairs = dispatch.experts.shape
    backend = backend or choose_backend(x.device, weight.shape, tokens, pairs, dtype)
    with torch.autocast(kind, enabled=False):
        if backend == "dense":
            return _dense(x.to(dtype), weight.to(dtype), dispatch.experts, gates, outputs)
        if backend == "triton" and dtype != torch.float64:
            if not has_kernels(kind):
                raise SharingError(
                    "--expert-backend triton requires the package triton and an NVIDIA GPU, Ampere or newer; "
                    f"allowed on {x.device}: auto, {', '.join(BACKENDS[:-1])}"
                )
            return _GatheringLinear.apply(x, weight, gates, dispatch, outputs, dtype)
        return _SortedLinear.apply(x, weight, gates, dispatch, outputs, dtype, backend, keep_gathered)


def _dense(x: Tensor, weight: Tensor, experts: Tensor, gates: Tensor | None, outputs: int) -> Tensor:
    """Multiply by every expert, with a matrix of gates that is 0 for experts that are not selected."""
    tokens, pairs = experts.shape
    inputs = len(x) // tokens if tokens else 1
    assert inputs == 1 or outputs == 1, "several rows on both sides are not supported"
    chosen = (experts[..., None] == torch.arange(len(weight), device=x.device)).to(x.dtype)  # (T, P, E)
    if gates is not None:
        chosen = chosen * gates.to(x.dtype)[..., None]
    if outputs == 1:
        weights = chosen.view(tokens, inputs, pairs // inputs, len(weight)).sum(2)
        mixed = torch.einsum("tai,tae->tei", x.view(tokens, inputs, x.size(-1)), weights)
        return mixed.flatten(1) @ weight.flatten(0, 1)
    weights = chosen.view(tokens, outputs, pairs // outputs, len(weight)).sum(2)
    every = torch.einsum("ti,eio->teo", x, weight)
    return torch.einsum("teo,tbe->tbo", every, weights).flatten(0, 1)


class _SortedLinear(torch.autograd.Function):
    """``expert_linear`` over pairs sorted by expert.

    The backward pass gathers the inputs of the pairs again unless they are kept. It also casts the bank again, so that
    layers that share it do not each keep a copy. Gates are applied on the narrower side of a bank, forward and
    backward, because the wider side dominates the time.
    """

    @staticmethod
    def forward(ctx: Any, x, weight, gates, dispatch, outputs, dtype, backend, keep_gathered):  # type: ignore[no-untyped-def]
        pairs = dispatch.experts.size(1)
        inputs = len(x) // max(len(dispatch.experts), 1) or 1
        gathered = x.to(dtype).index_select(0, dispatch.order // (pairs // inputs))
        gate = _sorted_gates(gates, dispatch, dtype)
        gates_input = gate is not None and weight.size(1) <= weight.size(2)
        y = _multiply(gathered * gate if gates_input else gathered, weight.to(dtype), dispatch.ends, backend)
        ungated = None
        if gate is not None and not gates_input:
            ungated, y = y, y * gate
        ctx.save_for_backward(x, weight, gates, gathered if keep_gathered else None, ungated)
        ctx.call = dispatch, inputs, outputs, dtype, backend
        return _sum_back(y, dispatch, outputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy):  # type: ignore[no-untyped-def]
        x, weight, gates, gathered, ungated = ctx.saved_tensors
        dispatch, inputs, outputs, dtype, backend = ctx.call
        pairs = dispatch.experts.size(1)
        if gathered is None:
            gathered = x.to(dtype).index_select(0, dispatch.order // (pairs // inputs))
        dy = dy.to(dtype).index_select(0, dispatch.order // (pairs // outputs))
        gate = _sorted_gates(gates, dispatch, dtype)
        dweight = dgates = None
        if ungated is not None:
            products, dy = dy * ungated, dy * gate
        dx = _multiply(dy, weight.to(dtype).transpose(1, 2), dispatch.ends, backend)
        if gate is not None and ungated is None:
            products, dx, gathered = dx * gathered, dx * gate, gathered * gate
        if gate is not None:
            dgates = products.sum(-1, dtype=gates.dtype)[dispatch.place].view_as(gates)
        if ctx.needs_input_grad[1]:
            dweight = _outer(gathered, dy, dispatch.ends, backend).to(weight.dtype)
        return _sum_back(dx, dispatch, inputs).to(x.dtype), dweight, dgates, None, None, None, None, None


class _GatheringLinear(torch.autograd.Function):
    """``expert_linear`` with gathering kernels. Gates are part of the sums; backward, they use the narrower side."""

    @staticmethod
    def forward(ctx: Any, x, weight, gates, dispatch, outputs, dtype):  # type: ignore[no-untyped-def]
        from fairseq_sharing.moeut import expert_kernels as kernels

        tokens, pairs = dispatch.experts.shape
        inputs = len(x) // max(tokens, 1) or 1
        y = kernels.multiply(x.to(dtype).contiguous(), weight.to(dtype), dispatch, pairs // inputs)
        # The gradient of the gates is computed on the narrower side.
        ungated = y if gates is not None and weight.size(1) > weight.size(2) else None
        ctx.save_for_backward(x, weight, gates, ungated)
        ctx.call = dispatch, inputs, outputs, dtype
        if gates is not None or outputs < pairs:
            y = kernels.weighed_sum(y, pairs // outputs, gates, dtype)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy):  # type: ignore[no-untyped-def]
        from fairseq_sharing.moeut import expert_kernels as kernels

        x, weight, gates, ungated = ctx.saved_tensors
        dispatch, inputs, outputs, dtype = ctx.call
        pairs = dispatch.experts.size(1)
        left, right = x.to(dtype).contiguous(), dy.to(dtype).contiguous()
        left_readers, right_readers = pairs // inputs, pairs // outputs
        dweight = dgates = None
        # Gates are applied on the narrower side: to rows of the output if the input is wider.
        if ungated is not None:
            (right, dgates), right_readers = kernels.gate(right, ungated, gates, right_readers), 1
        dx = kernels.multiply(right, weight.to(dtype), dispatch, right_readers, transposed=True)
        weights = None
        if gates is not None and ungated is None:
            (left, dgates), left_readers, weights = kernels.gate(left, dx, gates, left_readers), 1, gates
        if ctx.needs_input_grad[1]:
            dweight = kernels.outer(left, right, dispatch, left_readers, right_readers, weight.dtype)
        if weights is not None or inputs < pairs:
            dx = kernels.weighed_sum(dx, pairs // inputs, weights, x.dtype)
        return dx.to(x.dtype), dweight, dgates, None, None, None


def _sorted_gates(gates: Tensor | None, dispatch: Dispatch, dtype: torch.dtype) -> Tensor | None:
    """Sort gates into the order of the pairs, as a column: (tokens, P) -> (M, 1)."""
    return None if gates is None else gates.flatten()[dispatch.order].to(dtype)[:, None]


def _sum_back(rows: Tensor, dispatch: Dispatch, count: int) -> Tensor:
    """Restore token order and sum the pairs of each row: (M, C) -> (tokens * count, C)."""
    each = dispatch.experts.size(1) // count
    if each == 1:
        return rows.index_select(0, dispatch.place)
    # Reads every row once, writes only sums, and accumulates in fp32.
    return F.embedding_bag(dispatch.place.view(-1, each), rows, mode="sum")


def _multiply(rows: Tensor, bank: Tensor, ends: Tensor, backend: str) -> Tensor:
    """Multiply sorted rows by their experts' matrices: (M, in), (E, in, out) -> (M, out)."""
    if backend == "grouped" and rows.dtype != torch.float64:
        width = bank.size(2)
        return F.grouped_mm(_pad(rows, 1), _pad(bank, 1, 2), offs=ends)[:, :width]
    out = rows.new_zeros(len(rows), bank.size(2))
    for expert, part in _parts(ends):
        out[part] = rows[part] @ bank[expert]
    return out


def _outer(left: Tensor, right: Tensor, ends: Tensor, backend: str) -> Tensor:
    """Sum the outer products of each expert's rows: (M, in), (M, out) -> (E, in, out)."""
    if backend == "grouped" and left.dtype != torch.float64:
        sums = F.grouped_mm(_pad(left, 1).t(), _pad(right, 1), offs=ends)
        return sums[:, : left.size(1), : right.size(1)]
    sums = left.new_zeros(len(ends), left.size(1), right.size(1))
    for expert, part in _parts(ends):
        sums[expert] = left[part].t() @ right[part]
    return sums


def _parts(ends: Tensor) -> list[tuple[int, slice]]:
    """List the experts that have rows, with their slices."""
    bounds = [0, *ends.tolist()]
    return [(e, slice(bounds[e], bounds[e + 1])) for e in range(len(ends)) if bounds[e] < bounds[e + 1]]


def _pad(x: Tensor, *dims: int) -> Tensor:
    """Pad dimensions with zeros to the multiple that grouped_mm requires, for example 412 channels in bf16."""
    multiple = _ALIGNMENT // x.element_size()
    missing = [-x.size(dim) % multiple if dim in dims else 0 for dim in reversed(range(x.dim()))]
    return F.pad(x, [side for size in missing for side in (0, size)]) if any(missing) else x
