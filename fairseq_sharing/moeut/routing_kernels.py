"""Triton kernels for routers: selected experts and gates, usage of the experts in a batch, and the gradients of both.

In torch, each is a dozen small operations. For a few thousand tokens, launching them takes longer than running them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fairseq_sharing.moeut.kernels import on_its_device

_SCORES = 512  # scores per program of the selection; several tokens if each has few
_READ = 2048  # scores that a program of the usage kernels reads per iteration
_SPAN = 256  # tokens per program of the usage kernel


@triton.jit
def _choose_kernel(  # type: ignore[no-untyped-def]
    logits,
    candidates,
    chosen,
    gates,
    lines,
    experts,
    heads,
    TOP: tl.constexpr,
    ROWS: tl.constexpr,
    EXPERTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    expert = tl.arange(0, EXPERTS)
    real = (row < lines)[:, None] & (expert < experts)[None, :]
    score = tl.load(candidates + row[:, None] * experts + expert[None, :], mask=real, other=0.0)
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)  # 0 and -0 are equal
    # Map scores to integers in the same order; among equal scores, the first expert gets the largest integer.
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    key = bits.to(tl.int64) * 4294967296 + (EXPERTS - 1 - expert)[None, :]
    nothing = -9223372036854775808
    key = tl.where(real, key, nothing)
    first = (row % heads) * experts
    for place in tl.static_range(TOP):
        best = tl.max(key, axis=1)
        found = EXPERTS - 1 - (best & 0xFFFFFFFF)
        logit = tl.load(logits + row * experts + found, mask=row < lines, other=0.0)
        tl.store(chosen + row * TOP + place, first + found, mask=row < lines)
        tl.store(gates + row * TOP + place, tl.sigmoid(logit), mask=row < lines)
        key = tl.where(key == best[:, None], nothing, key)


@triton.jit
def _choice_gradient_kernel(  # type: ignore[no-untyped-def]
    chosen,
    gates,
    dgates,
    dlogits,
    lines,
    experts,
    heads,
    TOP: tl.constexpr,
    ROWS: tl.constexpr,
    EXPERTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    expert = tl.arange(0, EXPERTS)
    total = tl.zeros((ROWS, EXPERTS), dtype=tl.float32)
    for place in tl.static_range(TOP):
        at = row * TOP + place
        found = tl.load(chosen + at, mask=row < lines, other=0) - (row % heads) * experts
        gate = tl.load(gates + at, mask=row < lines, other=0.0)
        gradient = tl.load(dgates + at, mask=row < lines, other=0.0) * gate * (1 - gate)
        total += tl.where(expert[None, :] == found[:, None], gradient[:, None], 0.0)
    real = (row < lines)[:, None] & (expert < experts)[None, :]
    tl.store(dlogits + row[:, None] * experts + expert[None, :], total, mask=real)


@triton.jit
def _log_softmax(logits, row, expert, experts):  # type: ignore[no-untyped-def]
    at = logits + row[:, None] * experts + expert[None, :]
    logit = tl.load(at, mask=(expert < experts)[None, :], other=-float("inf"))
    shifted = logit - tl.max(logit, axis=1)[:, None]
    return shifted - tl.log(tl.sum(tl.exp(shifted), axis=1))[:, None]


@triton.jit
def _mass_kernel(  # type: ignore[no-untyped-def]
    logits,
    chosen,
    keep,
    log_mass,
    counts,
    length,
    batch,
    heads,
    experts,
    TOP: tl.constexpr,
    SPAN: tl.constexpr,
    ROWS: tl.constexpr,
    EXPERTS: tl.constexpr,
):
    head = tl.program_id(0) % heads
    sentence = tl.program_id(0) // heads
    expert = tl.arange(0, EXPERTS)
    highest = tl.full((EXPERTS,), -1e30, dtype=tl.float32)  # finite, because -inf - -inf is NaN
    mass = tl.zeros((EXPERTS,), dtype=tl.float32)
    count = tl.zeros((EXPERTS,), dtype=tl.int32)
    start = tl.program_id(1) * SPAN
    end = min(start + SPAN, length)
    for begin in range(start, end, ROWS):
        time = begin + tl.arange(0, ROWS)
        token = time.to(tl.int64) * batch + sentence
        kept = tl.load(keep + token, mask=time < end, other=0) != 0
        row = token * heads + head
        # Padding and positions past the end read the first row, which is then ignored.
        row = tl.where(kept, row, 0)
        log_p = _log_softmax(logits, row, expert, experts)
        log_p = tl.where(kept[:, None], log_p, -float("inf"))
        higher = tl.maximum(highest, tl.max(log_p, axis=0))
        mass = mass * tl.exp(highest - higher) + tl.sum(tl.exp(log_p - higher[None, :]), axis=0)
        highest = higher
        for place in tl.static_range(TOP):
            found = tl.load(chosen + row * TOP + place) - head * experts
            used = kept[:, None] & (expert[None, :] == found[:, None])
            count += tl.sum(used.to(tl.int32), axis=0)
    out = (tl.program_id(1) * batch * heads + tl.program_id(0)) * experts + expert
    tl.store(log_mass + out, highest + tl.log(mass), mask=expert < experts)
    tl.store(counts + out, count, mask=expert < experts)


@triton.jit
def _mass_gradient_kernel(  # type: ignore[no-untyped-def]
    logits,
    keep,
    log_mass,
    dlog_mass,
    dlogits,
    lines,
    batch,
    heads,
    experts,
    ROWS: tl.constexpr,
    EXPERTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    expert = tl.arange(0, EXPERTS)
    inside = (expert < experts)[None, :]
    kept = tl.load(keep + row // heads, mask=row < lines, other=0) != 0
    log_p = _log_softmax(logits, tl.where(kept, row, 0), expert, experts)
    at = (row // heads % batch * heads + row % heads)[:, None] * experts + expert[None, :]
    real = kept[:, None] & inside
    share = tl.exp(log_p - tl.load(log_mass + at, mask=real, other=0.0))
    weighed = tl.where(real, share * tl.load(dlog_mass + at, mask=real, other=0.0), 0.0)
    gradient = weighed - tl.exp(log_p) * tl.sum(weighed, axis=1)[:, None]
    tl.store(dlogits + row[:, None] * experts + expert[None, :], gradient, mask=(row < lines)[:, None] & inside)


def _blocks(experts: int, scores: int) -> dict[str, int]:
    """Return the block sizes of a program: rows, and experts rounded up to a power of 2."""
    columns = triton.next_power_of_2(experts)
    return {"ROWS": max(1, scores // columns), "EXPERTS": columns}


@on_its_device
def choose(logits: Tensor, candidates: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Select the experts with the largest candidates, in descending order; the first expert wins ties.

    Args:
        logits: fp32, (N, heads, E), contiguous.
        candidates: the values to select by, the same shape.
        top_k: number of experts to select.

    Returns:
        Experts, numbered head * E + expert, int64, and the sigmoids of their logits, fp32: (N, heads, top_k).
    """
    tokens, heads, experts = logits.shape
    chosen = torch.empty(tokens, heads, top_k, device=logits.device, dtype=torch.int64)
    gates = torch.empty(tokens, heads, top_k, device=logits.device)
    blocks = _blocks(experts, _SCORES)
    _choose_kernel[(triton.cdiv(tokens * heads, blocks["ROWS"]),)](
        logits, candidates, chosen, gates, tokens * heads, experts, heads, TOP=top_k, **blocks, num_warps=1
    )
    return chosen, gates


@on_its_device
def choice_gradient(chosen: Tensor, gates: Tensor, dgates: Tensor, experts: int) -> Tensor:
    """Return the gradient of the logits for a gradient of the gates: (N, heads, top_k) -> (N, heads, E)."""
    tokens, heads, top_k = chosen.shape
    dlogits = torch.empty(tokens, heads, experts, device=gates.device)
    blocks = _blocks(experts, _SCORES)
    _choice_gradient_kernel[(triton.cdiv(tokens * heads, blocks["ROWS"]),)](
        chosen, gates, dgates, dlogits, tokens * heads, experts, heads, TOP=top_k, **blocks, num_warps=1
    )
    return dlogits


@on_its_device
def mass(logits: Tensor, chosen: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Sum softmax probabilities over the tokens of each sentence, and count selected experts.

    Args:
        logits: fp32, (T * B, heads, E), contiguous.
        chosen: numbered head * E + expert, (T * B, heads, top_k), contiguous.
        keep: True for tokens that are not padding, (T, B), contiguous.

    Returns:
        Logarithms of the sums, fp32, (B, heads, E), and counts over the batch, int64, (heads, E).
    """
    _, heads, experts = logits.shape
    length, batch = keep.shape
    spans = triton.cdiv(length, _SPAN)
    log_mass = torch.empty(spans, batch, heads, experts, device=logits.device)
    counts = torch.empty(spans, batch, heads, experts, device=logits.device, dtype=torch.int32)
    _mass_kernel[(batch * heads, spans)](
        logits,
        chosen,
        keep,
        log_mass,
        counts,
        length,
        batch,
        heads,
        experts,
        TOP=chosen.size(-1),
        SPAN=_SPAN,
        **_blocks(experts, _READ),
    )
    return log_mass[0] if spans == 1 else log_mass.logsumexp(0), counts.sum((0, 1))


@on_its_device
def mass_gradient(logits: Tensor, keep: Tensor, log_mass: Tensor, dlog_mass: Tensor) -> Tensor:
    """Return the gradient of the logits for a gradient of ``log_mass``: (B, heads, E) -> (T * B, heads, E)."""
    tokens, heads, experts = logits.shape
    dlogits = torch.empty_like(logits)
    blocks = _blocks(experts, _READ)
    _mass_gradient_kernel[(triton.cdiv(tokens * heads, blocks["ROWS"]),)](
        logits, keep, log_mass, dlog_mass, dlogits, tokens * heads, keep.size(1), heads, experts, **blocks
    )
    return dlogits
