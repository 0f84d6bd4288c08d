"""MoEUT's layer: LayerNorm only before linear maps that feed a sigmoid or softmax, never on the residual stream."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from fairseq_sharing.fast.dropout import FastDropout
from fairseq_sharing.moeut.experts import ExpertOptions
from fairseq_sharing.moeut.rotary import Rotation
from fairseq_sharing.moeut.routing import Router, RouterUsage, Routing
from fairseq_sharing.moeut.sigma_moe import SigmaMoE
from fairseq_sharing.moeut.switch_head import Attended, SwitchHead


@dataclass(frozen=True)
class LayerSizes:
    """Sizes of a layer.

    Attributes:
        embed_dim: d.
        heads: H, number of attention heads.
        head_dim: d_h.
        attention_experts: N_A, value and output matrices per head.
        attention_top_k: K_A, matrices per head that a token uses.
        ffn_experts: N_E, feed-forward experts.
        ffn_top_k: K, feed-forward experts that a token uses.
        expert_dim: d_e, hidden width of a feed-forward expert.
        rotary_dim: channels of a head that are rotated.
    """

    embed_dim: int
    heads: int
    head_dim: int
    attention_experts: int
    attention_top_k: int
    ffn_experts: int
    ffn_top_k: int
    expert_dim: int
    rotary_dim: int

    def attention_macs(self, tokens: int) -> int:
        """Count the MACs of attention's linear maps on one side: the source or the destination."""
        maps = self.head_dim * (1 + self.attention_top_k) + self.attention_experts
        return tokens * self.heads * self.embed_dim * maps

    def read_macs(self, tokens: int, attended: int) -> int:
        """Count the MACs of attention scores and weighted sums."""
        return 2 * self.heads * self.head_dim * tokens * attended

    def ffn_macs(self, tokens: int) -> int:
        """Count the MACs of the feed-forward layer."""
        return tokens * self.embed_dim * (2 * self.ffn_top_k * self.expert_dim + self.ffn_experts)


@dataclass(frozen=True)
class Step:
    """Inputs that all layers of a stack have in common.

    Attributes:
        turn: rotary angles of the T positions.
        keep: True for tokens that are not padding, (T, B).
        mask: True where self-attention is allowed, (B, 1, T or 1, S); None to allow all.
        causal: use causal self-attention instead of a mask.
        memory_mask: True where cross-attention is allowed, (B, 1, 1, S); None to allow all.
        count: return the usage of the routers' experts.
    """

    turn: Rotation
    keep: Tensor
    mask: Tensor | None = None
    causal: bool = False
    memory_mask: Tensor | None = None
    count: bool = False

    def usage(self, router: Router, routing: Routing, kind: str, keep: Tensor | None = None) -> list[RouterUsage]:
        """Summarize a router's choices if requested."""
        return [RouterUsage.of(router, routing, kind, self.keep if keep is None else keep)] if self.count else []


class PeriLayer(nn.Module):
    """Self-attention, cross-attention (in a decoder) and feed-forward, each added to the residual stream x.

    y = Attention(queries, keys, routers: LN(x); values: x), x <- x + y; z = FFN(router: LN(x); experts: x), x <- x + z.
    In cross-attention, keys, value router and values read the normalized output of the encoder.

    Args:
        sizes: sizes of the layer.
        num_layers: L, depth of the stack; a shared layer counts as often as it is applied.
        dropout: dropout on what is added to the residual stream.
        attention_dropout: dropout on attention probabilities.
        cross_attention: also attend to the output of an encoder.
        options: options of the expert banks.

    Source: Csordas et al. 2024, "MoEUT: Mixture-of-Experts Universal Transformers", section 2.3. The paper has no
        cross-attention; it and the scale of its initialization, sqrt(4 / (3 L)), are this project's.
    """

    def __init__(
        self,
        sizes: LayerSizes,
        num_layers: int,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        cross_attention: bool = False,
        options: ExpertOptions | None = None,
    ):
        super().__init__()
        options = options or ExpertOptions()
        sublayers = 3 if cross_attention else 2
        scale = (4 / (sublayers * num_layers)) ** 0.5

        heads = sizes.embed_dim, sizes.heads, sizes.head_dim, sizes.attention_experts, sizes.attention_top_k
        attention = partial(SwitchHead, *heads, scale, attention_dropout, options)
        self.self_attn_layer_norm = nn.LayerNorm(sizes.embed_dim)
        self.self_attn = attention()
        self.encoder_attn_layer_norm = nn.LayerNorm(sizes.embed_dim) if cross_attention else None
        self.encoder_attn = attention() if cross_attention else None
        self.final_layer_norm = nn.LayerNorm(sizes.embed_dim)
        self.ffn = SigmaMoE(sizes.embed_dim, sizes.ffn_experts, sizes.ffn_top_k, sizes.expert_dim, scale, options)
        self.dropout = FastDropout(dropout, type(self).__name__)

    def forward(
        self, x: Tensor, step: Step, past: Attended | None = None, memory: Attended | None = None
    ) -> tuple[Tensor, Attended, list[RouterUsage]]:
        """Apply the layer.

        Args:
            x: the residual stream, (T, B, d).
            step: inputs that all layers have in common.
            past: keys and values of earlier positions.
            memory: keys and values of cross-attention, from ``attend_to``.

        Returns:
            The residual stream; keys and values of all positions so far; usage of the routers if requested.
        """
        attention, usages = self.self_attn, []
        normalized = self.self_attn_layer_norm(x)
        source, routing = attention.attended(normalized, x, step.turn)
        usages += step.usage(attention.value_router, routing, "self_attn.value")
        if past is not None:
            source = past.extend(source)
        y, routing = attention(normalized, source, step.mask, step.causal, step.turn)
        usages += step.usage(attention.output_router, routing, "self_attn.output")
        x = x + self.dropout(y)
        if memory is not None:
            assert self.encoder_attn is not None
            assert self.encoder_attn_layer_norm is not None
            normalized = self.encoder_attn_layer_norm(x)
            y, routing = self.encoder_attn(normalized, memory, step.memory_mask)
            usages += step.usage(self.encoder_attn.output_router, routing, "encoder_attn.output")
            x = x + self.dropout(y)
        normalized = self.final_layer_norm(x)
        y, routing = self.ffn(normalized.flatten(0, 1), x.flatten(0, 1))
        usages += step.usage(self.ffn.router, routing, "ffn")
        return x + self.dropout(y.view_as(x)), source, usages

    def attend_to(self, memory: Tensor, step: Step, keep: Tensor) -> tuple[Attended, list[RouterUsage]]:
        """Compute keys and values of cross-attention: equal for all layers that share it and for all target positions.

        Args:
            memory: the encoder's output, (S, B, d).
            step: inputs that all layers have in common.
            keep: True for source tokens that are not padding, (S, B).
        """
        assert self.encoder_attn is not None
        attended, routing = self.encoder_attn.attended(memory, memory)
        return attended, step.usage(self.encoder_attn.value_router, routing, "encoder_attn.value", keep)
