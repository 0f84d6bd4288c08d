"""MoEUT's layer: LayerNorms only in front of what a sigmoid or softmax follows, never on the residual stream."""

from __future__ import annotations

from dataclasses import dataclass

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
        heads: H attention maps.
        head_dim: d_h.
        attention_experts: N_A, value and output matrices of each head.
        attention_top_k: K_A of them that a token uses.
        ffn_experts: N_E.
        ffn_top_k: K of them that a token uses.
        expert_dim: d_e, hidden width of a feed-forward expert.
        rotary_dim: channels of a head that carry the position.
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

    def attention_macs(self, tokens: int) -> tuple[int, int]:
        """Count the multiply-accumulate operations of attention's maps, on the source and on the destination side."""
        side = (
            tokens * self.heads * self.embed_dim * (self.head_dim * (1 + self.attention_top_k) + self.attention_experts)
        )
        return side, side

    def read_macs(self, tokens: int, attended: int) -> int:
        """Count those of scores and read-out."""
        return 2 * self.heads * self.head_dim * tokens * attended

    def ffn_macs(self, tokens: int) -> int:
        """Count those of the feed-forward layer."""
        return tokens * self.embed_dim * (2 * self.ffn_top_k * self.expert_dim + self.ffn_experts)


@dataclass(frozen=True)
class Step:
    """What a stack tells all its layers about a batch.

    Attributes:
        turn: rotary angles of the T positions.
        keep: True where a token is no padding, (T, B).
        mask: True where self-attention is allowed, (B, 1, T or 1, S); None where all of it is.
        causal: allow self-attention to what is not later; instead of a mask.
        memory_mask: True where cross-attention is allowed, (B, 1, 1, S); None where all of it is.
        count: report how the routers used their experts.
    """

    turn: Rotation
    keep: Tensor
    mask: Tensor | None = None
    causal: bool = False
    memory_mask: Tensor | None = None
    count: bool = False

    def usage(self, router: Router, routing: Routing, kind: str, keep: Tensor | None = None) -> list[RouterUsage]:
        """Sum up a router's choices, where that is wanted."""
        return [RouterUsage.of(router, routing, kind, self.keep if keep is None else keep)] if self.count else []


class PeriLayer(nn.Module):
    """Self-attention, cross-attention in a decoder, and feed-forward, one after the other, each added to the stream x.

    y = Attention(queries, keys, routers: LN(x); values: x), x <- x + y; z = FFN(router: LN(x); experts: x), x <- x + z.
    In cross-attention keys, value router and values read the encoder's (normalized) output.

    Args:
        sizes: of the layer.
        num_layers: L, depth of the stack, layers that share parameters counted as often as they are applied.
        dropout: of what is added to the stream.
        attention_dropout: of attention probabilities.
        cross_attention: attend to an encoder's output too.
        options: of all banks.

    Source: Csordas et al. 2024, "MoEUT: Mixture-of-Experts Universal Transformers", section 2.3. There is no
        cross-attention in the paper; it and the scale of its initialization, sqrt(4 / (3 L)), are this project's.
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

        def attention() -> SwitchHead:
            return SwitchHead(
                sizes.embed_dim,
                sizes.heads,
                sizes.head_dim,
                sizes.attention_experts,
                sizes.attention_top_k,
                scale,
                attention_dropout,
                options,
            )

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
            x: the stream, (T, B, d).
            step: see there.
            past: keys and values of earlier positions.
            memory: the encoder's side of cross-attention, from ``attend_to``.

        Returns:
            The stream; keys and values of all positions so far; usage of the routers where it is wanted.
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
        """Make the encoder's side of cross-attention: the same for all layers that share it, and for all target words.

        Args:
            memory: the encoder's output, (S, B, d).
            step: see there.
            keep: True where a source word is no padding, (S, B).
        """
        assert self.encoder_attn is not None
        attended, routing = self.encoder_attn.attended(memory, memory)
        return attended, step.usage(self.encoder_attn.value_router, routing, "encoder_attn.value", keep)
