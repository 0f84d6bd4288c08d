"""Tiny models of the cases, the same as fairseq's own transformer, and inputs for them."""

from __future__ import annotations

from argparse import Namespace
from types import SimpleNamespace

import torch
from fairseq import models
from fairseq.data import Dictionary
from sharing_cases import LAYERS, Case
from torch import nn

import fairseq_sharing

fairseq_sharing.register()

EMBED, FFN, HEADS, VOCABULARY = 16, 32, 2, 50
PAD, EOS = 1, 2


def dictionary() -> Dictionary:
    """Make a dictionary of 50 symbols, fairseq's four special ones with them."""
    made = Dictionary()
    for number in range(VOCABULARY - len(made)):
        made.add_symbol(f"w{number}")
    return made


def arguments(norm: str = "post", arch: str = "transformer_sharing", **options) -> Namespace:
    """Make the arguments of a tiny model; the embeddings of both sides and the output are one matrix."""
    tiny = {"dropout": 0.0, "share_all_embeddings": True, "max_source_positions": 64, "max_target_positions": 64}
    for stack in ("encoder", "decoder"):
        tiny[f"{stack}_embed_dim"] = EMBED
        tiny[f"{stack}_ffn_embed_dim"] = FFN
        tiny[f"{stack}_attention_heads"] = HEADS
        tiny[f"{stack}_layers"] = LAYERS
        tiny[f"{stack}_normalize_before"] = norm == "pre"
    return Namespace(arch=arch, **{**tiny, **options})


def build(norm: str = "post", *, seed: int = 1, arch: str = "transformer_sharing", **options) -> nn.Module:
    """Build a tiny model from a seed."""
    torch.manual_seed(seed)
    symbols = dictionary()
    task = SimpleNamespace(source_dictionary=symbols, target_dictionary=symbols)
    return models.build_model(arguments(norm, arch, **options), task)


def build_case(case: Case, norm: str, *, seed: int = 1, **options) -> nn.Module:
    """Build the model of a case, its weights moved away from their initial values."""
    return perturb(build(norm, seed=seed, **case.options, **options))


def perturb(model: nn.Module, seed: int = 7) -> nn.Module:
    """Move every parameter away from its initial value: LayerNorms from 1 and biases from 0, too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    return model


def vanilla_copy(case: Case, model: nn.Module, norm: str, **options) -> nn.Module:
    """Build fairseq's own transformer of N layers, with copies of the weights that the case's map gives each."""
    stock = build(norm, arch="transformer", seed=99, **options)
    ours = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, parameter in stock.named_parameters():
            parameter.copy_(ours[case.source(name)])
    return stock


def batch(seed: int = 3) -> dict[str, torch.Tensor]:
    """Make a batch of 3 sentences of different lengths: sources padded on the left, targets on the right."""
    generator = torch.Generator().manual_seed(seed)

    def sentences(lengths: tuple[int, ...], left: bool) -> torch.Tensor:
        rows = torch.full((len(lengths), max(lengths)), PAD)
        for row, length in zip(rows, lengths, strict=True):
            words = torch.randint(4, VOCABULARY, (length,), generator=generator)
            words[-1 if left else 0] = EOS
            row[-length:] = words if left else row[-length:]
            if not left:
                row[:length] = words
        return rows

    return {
        "src_tokens": sentences((7, 5, 3), left=True),
        "src_lengths": torch.tensor([7, 5, 3]),
        "prev_output_tokens": sentences((6, 8, 4), left=False),
    }


def loss(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sum a loss that weights every output differently, over the words that are no padding."""
    log_probs = model.get_normalized_probs(model(**inputs), log_probs=True)
    weights = torch.linspace(-1, 1, log_probs.numel()).view_as(log_probs)
    return (log_probs * weights)[inputs["prev_output_tokens"] != PAD].sum()
