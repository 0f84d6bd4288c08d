"""fairseq's attention with fewer, larger operations: one product for query, key and value, and fused kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.modules import MultiheadAttention
from torch import Tensor, nn
from torch.nn import functional as F

from fairseq_sharing.fast.precision import product_dtype

State = dict[str, dict[str, Tensor | None]]

# In bf16 on a CPU, attention to at most this many positions stores its probabilities, which is faster at such lengths.
_STORED_LENGTH = 256


@dataclass
class _PassCache:
    """Common values of the layers in one forward pass: masks, and sources projected by the same weights.

    The keys contain the ids of the inputs. The entries keep references to these inputs, because an id is unique only
    during an object's lifetime.
    """

    masks: dict[tuple, tuple[tuple, Tensor]] = field(default_factory=dict)
    sources: dict[tuple, tuple[tuple, tuple[Tensor, ...]]] = field(default_factory=dict)


_cache: ContextVar[_PassCache | None] = ContextVar("attention cache of a forward pass", default=None)


@contextmanager
def one_pass() -> Iterator[None]:
    """Share masks and projected sources between the layers of a stack during one forward pass."""
    token = _cache.set(_PassCache())
    try:
        yield
    finally:
        _cache.reset(token)


class FastAttention(MultiheadAttention):
    """fairseq's multi-head attention, with the same Parameters, options and decoding cache.

    In cross-attention, layers that share their projections project the source once. If attention weights are requested,
    fairseq's own code runs.

    A compiled layer gets values that are computed outside of its graph: the result of ``shared_source`` as ``key`` and
    that of ``full_mask`` as ``key_padding_mask``.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor | tuple[Tensor, Tensor] | None,
        value: Tensor | tuple[Tensor, Tensor] | None,
        key_padding_mask: Tensor | None = None,
        incremental_state: State | None = None,
        need_weights: bool = True,
        static_kv: bool = False,
        attn_mask: Tensor | None = None,
        before_softmax: bool = False,
        need_head_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            query: T x B x C.
            key: S x B x C, or None if cached; T x B x C in self-attention; or a projected source.
            value: the same as the key.
            key_padding_mask: B x S, True at padding; or a full additive mask, B x 1 x (1 or T) x S.
            incremental_state: the decoding cache of all modules.
            need_weights: whether to return the attention weights.
            static_kv: whether the cached keys are complete.
            attn_mask: T x S, added to the scores.
            before_softmax: whether to return the raw scores.
            need_head_weights: whether to return the weights of each head.

        Returns:
            The attended values, T x B x C, and the weights if requested.
        """
        if key_padding_mask is not None and key_padding_mask.is_floating_point():
            if isinstance(key, tuple):
                (q,), (k, v) = self._project(query, "q_proj"), key
            else:
                q, k, v = self._project(query, "q_proj", "k_proj", "v_proj")
            return self._attend(q, k, v, key_padding_mask), None
        assert not isinstance(key, tuple)
        assert not isinstance(value, tuple)
        if need_weights or need_head_weights or before_softmax:
            return super().forward(
                query,
                key,
                value,
                key_padding_mask,
                incremental_state,
                need_weights,
                static_kv,
                attn_mask,
                before_softmax,
                need_head_weights,
            )
        saved = self._get_input_buffer(incremental_state) if incremental_state is not None else None
        if self.self_attention:
            q, k, v = self._project(query, "q_proj", "k_proj", "v_proj")
        else:
            (q,) = self._project(query, "q_proj")
            if saved and static_kv:
                k, v = saved["prev_key"], saved["prev_value"]
            else:
                assert key is not None
                k, v = self.shared_source(key)
        if saved is not None:
            if saved and not static_kv:
                k = torch.cat((saved["prev_key"], k), 2)
                v = torch.cat((saved["prev_value"], v), 2)
            key_padding_mask = self._append_prev_key_padding_mask(
                key_padding_mask, saved.get("prev_key_padding_mask"), k.size(0), k.size(2), static_kv
            )
            k, v = k.contiguous(), v.contiguous()
            saved.update(prev_key=k, prev_value=v, prev_key_padding_mask=key_padding_mask)
            self._set_input_buffer(incremental_state, saved)
        return self._attend(q, k, v, _mask(key_padding_mask, attn_mask, q)), None

    def _get_input_buffer(self, incremental_state: State | None) -> dict[str, Any]:
        # fairseq looks up a name that is unique to the module, which would bind a compiled graph to this module.
        return {} if incremental_state is None else super()._get_input_buffer(incremental_state)

    def _project(self, x: Tensor, *names: str) -> tuple[Tensor, ...]:
        # T x B x C -> for each name B x H x T x D
        modules = [getattr(self, name) for name in names]
        if len(modules) == 1:
            projected = modules[0](x)
        else:
            weight = torch.cat([module.weight for module in modules])
            bias = None if modules[0].bias is None else torch.cat([module.bias for module in modules])
            projected = F.linear(x, weight, bias)
        length, batch, _ = x.shape
        return projected.view(length, batch, len(names), self.num_heads, self.head_dim).permute(2, 1, 3, 0, 4).unbind(0)

    def _project_source(self, source: Tensor) -> tuple[Tensor, ...]:
        return self._project(source, "k_proj", "v_proj")

    def shared_source(self, source: Tensor) -> tuple[Tensor, ...]:
        """Project a source, S x B x C, to keys and values, B x H x S x D, once per pass for layers that share them."""
        cache = _cache.get()
        if cache is None:
            return self._project_source(source)
        parameters = (self.k_proj.weight, self.k_proj.bias, self.v_proj.weight, self.v_proj.bias)
        identity = (id(source), self.num_heads, *map(id, parameters))
        if identity not in cache.sources:
            # Effective weights are temporary, unlike Parameters.
            cache.sources[identity] = ((source, *parameters), self._project_source(source))
        return cache.sources[identity][1]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        batch, heads, length, width = q.shape
        dropping = self.training or self.dropout_module.apply_during_inference
        x = _scaled_attention(q, k, v, mask, self.dropout_module.p if dropping else 0.0)
        # B x H x T x D -> T x B x C
        x = x.permute(2, 0, 1, 3).reshape(length, batch, heads * width)
        return self.out_proj(x.to(product_dtype(self.out_proj.weight)))


def _scaled_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Attend with scaled dot products, B x H x T x D."""
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q, k, v, mask, dropout)
    if k.size(2) > _STORED_LENGTH:
        # The backward pass of torch's CPU attention is many times slower in bf16 than in fp32.
        return _scaled_attention(q.float(), k.float(), v.float(), mask, dropout)
    scores = torch.matmul(q * q.size(-1) ** -0.5, k.transpose(-1, -2))
    if mask is not None:
        scores = scores + mask.to(scores.dtype)
    with torch.autocast("cpu", enabled=False):
        return F.dropout(scores.softmax(-1), dropout) @ v


def use_fast_attention(model: nn.Module) -> None:
    """Switch every fairseq attention in a model to the fast implementation.

    Args:
        model: the model. Its modules change; its parameters and their names do not.
    """
    for module in model.modules():
        if type(module) is MultiheadAttention and _supported(module):
            module.__class__ = FastAttention


def _supported(attention: MultiheadAttention) -> bool:
    projections = [getattr(attention, name) for name in ("q_proj", "k_proj", "v_proj", "out_proj")]
    # Quantization noise is a hook that changes a weight just before its module uses it.
    plain = all(type(module) is nn.Linear and not module._forward_pre_hooks for module in projections)
    return plain and attention.bias_k is None and not attention.add_zero_attn and not attention.use_xformers


def full_mask(key_padding_mask: Tensor | None, attn_mask: Tensor | None, x: Tensor, src_len: int) -> Tensor:
    """Return the additive mask of the scores, B x 1 x (1 or T) x S, even if nothing is masked.

    Args:
        key_padding_mask: B x S, True at padding.
        attn_mask: T x S, added to the scores.
        x: the query input, T x B x C.
        src_len: S.
    """
    shape = (x.size(1), 1, 1 if attn_mask is None else x.size(0), src_len)
    return _add_masks(key_padding_mask, attn_mask, x, product_dtype(x), shape)


def _mask(key_padding_mask: Tensor | None, attn_mask: Tensor | None, q: Tensor) -> Tensor | None:
    """Return the additive mask of the scores, B x 1 x (1 or T) x S; None if nothing is masked."""
    if key_padding_mask is None and attn_mask is None:
        return None
    return _add_masks(key_padding_mask, attn_mask, q, q.dtype, ())


def _add_masks(
    key_padding_mask: Tensor | None, attn_mask: Tensor | None, x: Tensor, dtype: torch.dtype, shape: tuple[int, ...]
) -> Tensor:
    """Combine masks, broadcast to at least this shape, once per pass."""
    cache = _cache.get()
    dtype = torch.float32 if x.device.type == "cpu" else dtype
    identity = (id(key_padding_mask), id(attn_mask), dtype, shape)
    if cache is not None and identity in cache.masks:
        return cache.masks[identity][1]
    mask = x.new_zeros(shape, dtype=dtype)
    if attn_mask is not None:
        mask = mask + attn_mask.to(dtype)
    if key_padding_mask is not None:
        padding = torch.zeros(key_padding_mask.shape, dtype=dtype, device=x.device)
        mask = mask + padding.masked_fill_(key_padding_mask.bool(), float("-inf"))[:, None, None]
    if cache is not None:
        cache.masks[identity] = ((key_padding_mask, attn_mask), mask)
    return mask
