"""Dense baseline layer for MoEUT: pre-norm, rotary positions, no biases in attention."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from fairseq_sharing.fast.dropout import FastDropout
from fairseq_sharing.moeut.peri_layer import Step
from fairseq_sharing.moeut.rotary import rotate
from fairseq_sharing.moeut.routing import RouterUsage
from fairseq_sharing.moeut.switch_head import Attended


@dataclass(frozen=True)
class DenseSizes:
    """Sizes of a dense layer.

    Attributes:
        embed_dim: d.
        heads: number of attention heads.
        head_dim: width of a head; heads * head_dim may differ from d.
        ffn_dim: hidden width of the feed-forward layer.
        rotary_dim: channels of a head that are rotated.
    """

    embed_dim: int
    heads: int
    head_dim: int
    ffn_dim: int
    rotary_dim: int

    def macs(self, tokens: int) -> int:
        """Count the multiply-accumulate operations of a layer over a sentence with full attention."""
        maps = self.embed_dim * (4 * self.heads * self.head_dim + 2 * self.ffn_dim)
        return tokens * (maps + 2 * self.heads * self.head_dim * tokens)


class DenseLayer(nn.Module):
    """x <- x + Attention(LN(x)); x <- x + W2 ReLU(W1 LN(x) + b1) + b2.

    Args:
        sizes: sizes of the layer.
        num_layers: L, depth of the stack. Initial standard deviations are sqrt(2 / L) / sqrt(inputs), as in MoEUT.
        dropout: dropout on what is added to the residual stream.
        attention_dropout: dropout on attention probabilities.

    Source: the baseline of Csordas et al. 2024, MoEUT, section 3, which does not specify its initialization.
    """

    def __init__(self, sizes: DenseSizes, num_layers: int, dropout: float = 0.0, attention_dropout: float = 0.0):
        super().__init__()
        self.sizes, self.attention_dropout = sizes, attention_dropout
        d, inner = sizes.embed_dim, sizes.heads * sizes.head_dim
        self.self_attn_layer_norm = nn.LayerNorm(d)
        self.self_attn = nn.ModuleDict(
            {
                **{name: nn.Linear(d, inner, bias=False) for name in ("q_proj", "k_proj", "v_proj")},
                "out_proj": nn.Linear(inner, d, bias=False),
            }
        )
        self.final_layer_norm = nn.LayerNorm(d)
        self.fc1 = nn.Linear(d, sizes.ffn_dim)
        self.fc2 = nn.Linear(sizes.ffn_dim, d)
        self.dropout = FastDropout(dropout, type(self).__name__)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=(2 / (num_layers * module.in_features)) ** 0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self, x: Tensor, step: Step, past: Attended | None = None, memory: None = None
    ) -> tuple[Tensor, Attended, list[RouterUsage]]:
        """Apply the layer. Arguments and results are as in ``PeriLayer``, without experts."""
        assert memory is None, "the baseline is a language model"
        normalized = self.self_attn_layer_norm(x)
        queries, keys, values = (
            self.self_attn[name](normalized).unflatten(-1, (self.sizes.heads, -1)).permute(1, 2, 0, 3)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        source = Attended(rotate(keys, step.turn), values)
        if past is not None:
            source = past.extend(source)
        dropout = self.attention_dropout if self.training else 0.0
        read = F.scaled_dot_product_attention(
            rotate(queries, step.turn),
            source.keys,
            source.values,
            attn_mask=step.mask,
            dropout_p=dropout,
            is_causal=step.causal,
        )
        x = x + self.dropout(self.self_attn["out_proj"](read.permute(2, 0, 1, 3).flatten(2)))
        return x + self.dropout(self.fc2(self.fc1(self.final_layer_norm(x)).relu())), source, []
