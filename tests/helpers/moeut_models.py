"""Tiny models with expert banks, and their equations as explicit loops."""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from fairseq import models
from sharing_cases import CASES, LAYERS, Case
from tiny_models import EMBED, arguments, dictionary, perturb
from torch import Tensor, nn

from fairseq_sharing.moeut.peri_layer import LayerSizes, PeriLayer, Step
from fairseq_sharing.moeut.rotary import rotation

BANKS = {
    "head_dim": 8,
    "attention_experts": 4,
    "attention_top_k": 2,
    "ffn_experts": 6,
    "encoder_ffn_experts": 5,
    "ffn_top_k": 2,
    "expert_dim": 8,
}
# Without the cases that apply only to fairseq's own layers.
MOEUT_CASES = [case for case in CASES if "fast" not in case.options]
SIZES = LayerSizes(EMBED, 2, 8, 4, 2, 6, 2, 8, 4)


def build_moeut(arch: str = "transformer_moeut", *, seed: int = 1, **changes) -> nn.Module:
    """Build a tiny translation or language model with expert banks."""
    torch.manual_seed(seed)
    symbols = dictionary()
    task = SimpleNamespace(source_dictionary=symbols, target_dictionary=symbols)
    args = arguments("pre", arch, **{**BANKS, **changes})
    if "lm" in arch:
        args.share_decoder_input_output_embed, args.tokens_per_sample = True, 32
        args.encoder_ffn_experts = None
    return models.build_model(args, task)


def build_moeut_case(case: Case, **changes) -> nn.Module:
    """Build the translation model of a case with perturbed weights."""
    return perturb(build_moeut(**{"sharing": "none", **case.options, **changes}))


def layer(seed: int = 1, **changes) -> PeriLayer:
    """Build one layer of a stack of 4 with perturbed weights."""
    torch.manual_seed(seed)
    return perturb(PeriLayer(SIZES, num_layers=4, **changes)).eval()


def step(length: int, batch: int, causal: bool = True, keep: Tensor | None = None, **changes) -> Step:
    """Return a layer's inputs for a batch without padding."""
    kept = torch.ones(length, batch, dtype=torch.bool) if keep is None else keep
    return Step(rotation(0, length, SIZES.rotary_dim), kept, causal=causal, **changes)


def layer_by_loops(module: PeriLayer, x: Tensor) -> Tensor:
    """Apply a layer to one sentence by its equations, element by element where a library call could hide an error.

    Args:
        module: a layer without cross-attention.
        x: (T, C), fp64.
    """
    x = x + _attention_by_loops(module.self_attn, _layer_norm(module.self_attn_layer_norm, x), x)
    normalized = _layer_norm(module.final_layer_norm, x)
    rows = []
    for token, data in zip(normalized, x, strict=True):
        row = torch.zeros_like(data)
        for expert, gate in _route(module.ffn.router, token, 0):
            hidden = torch.stack([max(value, value * 0) for value in data @ module.ffn.up[expert].double()])
            row = row + gate * (hidden @ module.ffn.down[expert].double())
        rows.append(row)
    return x + torch.stack(rows)


def _attention_by_loops(attention, normalized: Tensor, x: Tensor) -> Tensor:
    d, length = attention.head_dim, len(x)
    y = torch.zeros_like(x)
    for head in range(attention.heads):
        part = slice(head * d, (head + 1) * d)
        queries, keys, values = [], [], []
        for position in range(length):
            query = attention.q_proj.weight[part].double() @ normalized[position]
            key = attention.k_proj.weight[part].double() @ normalized[position]
            queries.append(_turn(query, position))
            keys.append(_turn(key, position))
            value = torch.zeros(d, dtype=torch.float64)
            for expert, gate in _route(attention.value_router, normalized[position], head):
                value = value + gate * (x[position] @ attention.value_experts[expert].double())
            values.append(value)
        for position in range(length):
            scores = [math.exp(queries[position] @ keys[past] / math.sqrt(d)) for past in range(position + 1)]
            read = sum(score / sum(scores) * value for score, value in zip(scores, values, strict=False))
            for expert, gate in _route(attention.output_router, normalized[position], head):
                y[position] += gate * (read @ attention.output_experts[expert].double())
    return y


def _route(router, token: Tensor, head: int) -> list[tuple[int, float]]:
    first = head * router.num_experts
    scores = {
        e: 1 / (1 + math.exp(-(router.weight[e].double() @ token))) for e in range(first, first + router.num_experts)
    }
    return sorted(scores.items(), key=lambda item: -item[1])[: router.top_k]


def _turn(x: Tensor, position: int) -> Tensor:
    half = SIZES.rotary_dim // 2
    turned = x.clone()
    for j in range(half):
        angle = position * 10_000 ** (-2 * j / SIZES.rotary_dim)
        turned[j] = x[j] * math.cos(angle) - x[j + half] * math.sin(angle)
        turned[j + half] = x[j + half] * math.cos(angle) + x[j] * math.sin(angle)
    return turned


def _layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    centered = x - x.mean(1, keepdim=True)
    scaled = centered / (centered.pow(2).mean(1, keepdim=True) + 1e-5).sqrt()
    return scaled * norm.weight.double() + norm.bias.double()


# The language model uses the map of the translation model's decoder.
def decoder_options(case: Case) -> dict | None:
    """Return the case's options for a decoder-only model; None if they tie nothing in the decoder."""
    scope = [part for part in case.scope if part != "encoder_attn"]
    if not scope:
        return None
    return {
        "sharing": "custom",
        "layer_map": ",".join(map(str, case.decoder)),
        "sharing_scope": ",".join(scope),
        "decoder_layers": LAYERS,
    }
