"""Layers are reordered without changing their function."""

from __future__ import annotations

import re

import pytest
import torch
from moeut_models import build_moeut
from sharing_cases import SCOPE_PATTERNS
from tiny_models import EMBED, FFN, HEADS, build, perturb
from torch import nn

from fairseq_sharing.checkpoints.align import align_layer
from fairseq_sharing.errors import SharingError

BOTH = {"self_attn": HEADS, "encoder_attn": HEADS}
HEAD = EMBED // HEADS
# Every tensor of fairseq's layers that its flags add.
ALL_SCALES = {"scale_attn": True, "scale_heads": True, "scale_fc": True, "scale_resids": True}


def decoder_layer(seed: int, **changes) -> nn.Module:
    return perturb(build("pre", seed=seed, arch="transformer", **changes), seed).eval().decoder.layers[0]


def permuted(layer: nn.Module, seed: int = 5) -> dict[str, torch.Tensor]:
    """Reorder units and heads, written out for each tensor."""
    generator = torch.Generator().manual_seed(seed)
    units = torch.randperm(FFN, generator=generator)
    rows = torch.cat([torch.arange(HEAD) + HEAD * head for head in (1, 0)])
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    for name in ("fc1.weight", "fc1.bias", "ffn_layernorm.weight", "ffn_layernorm.bias"):
        if name in state:
            state[name] = state[name][units]
    state["fc2.weight"] = state["fc2.weight"][:, units]
    for attention in BOTH:
        for matrix in "qkv":
            for kind in ("weight", "bias"):
                state[f"{attention}.{matrix}_proj.{kind}"] = state[f"{attention}.{matrix}_proj.{kind}"][rows]
        state[f"{attention}.out_proj.weight"] = state[f"{attention}.out_proj.weight"][:, rows]
    return state


def run(layer: nn.Module, state: dict[str, torch.Tensor]) -> torch.Tensor:
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    generator = torch.Generator().manual_seed(8)
    x, memory = (torch.randn(length, 3, EMBED, generator=generator) for length in (5, 7))
    layer.load_state_dict(state)
    with torch.no_grad():
        made = layer(x, memory)[0]
    layer.load_state_dict(before)
    return made


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return sum(float((one[name] - other[name]).pow(2).sum()) for name in one)


@pytest.mark.parametrize("changes", [{}, ALL_SCALES], ids=["plain", "all scales"])
def test_a_permuted_copy_is_recovered_exactly(changes):
    layer = decoder_layer(1, **changes)
    original, copy = layer.state_dict(), permuted(layer)
    assert not torch.equal(copy["fc1.weight"], original["fc1.weight"])
    torch.testing.assert_close(run(layer, copy), run(layer, original), rtol=0, atol=1e-5)
    aligned = align_layer(copy, original, BOTH)
    assert aligned.keys() == original.keys()
    assert all(torch.equal(aligned[name], original[name]) for name in original)


@pytest.mark.parametrize("changes", [{}, ALL_SCALES], ids=["plain", "all scales"])
def test_another_layer_keeps_its_function_and_comes_closer(changes):
    layer, other = decoder_layer(1, **changes), decoder_layer(2, **changes)
    reference, state = layer.state_dict(), other.state_dict()
    aligned = align_layer(state, reference, BOTH)
    assert not torch.equal(aligned["fc1.weight"], state["fc1.weight"])
    torch.testing.assert_close(run(other, aligned), run(other, state), rtol=0, atol=1e-5)
    assert distance(aligned, reference) < distance(state, reference)


@pytest.mark.parametrize("scope", ["self_attn", "encoder_attn", "ffn", "layer_norm"])
def test_parts_out_of_the_scope_keep_their_order(scope):
    layer = decoder_layer(1)
    original, copy = layer.state_dict(), permuted(layer)
    aligned = align_layer(copy, original, BOTH, (scope,))
    for name, value in aligned.items():
        expected = original if re.match(SCOPE_PATTERNS[scope], name) else copy
        assert torch.equal(value, expected[name]), name


def test_layers_with_experts_are_refused_by_name():
    state = build_moeut().encoder.layers[0].state_dict()
    with pytest.raises(
        SharingError, match=r"^--align cannot reorder self_attn\.\w+.*; allowed: layers of fairseq's Tr"
    ):
        align_layer(state, state, {})
