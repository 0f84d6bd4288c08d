"""Check weights against stock fairseq's transformer without allocating the model."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch

from fairseq_sharing.errors import SharingError


def refuse_unfit(arguments: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Reject a state dict that stock fairseq's model with these arguments does not load.

    Args:
        arguments: a stock model's arguments, including ``arch``.
        state: the model's state dict, with all layers.

    Raises:
        SharingError: a tensor is missing or has the wrong shape; the message names it.
    """
    from fairseq.data import Dictionary
    from fairseq.models import ARCH_MODEL_REGISTRY

    def dictionary(stack: str) -> Dictionary:
        made = Dictionary()
        embedding = state.get(f"{stack}.embed_tokens.weight")
        for number in range(len(made), len(embedding) if torch.is_tensor(embedding) and embedding.dim() else 0):
            made.add_symbol(f"{number}")
        return made

    source, target = dictionary("encoder"), dictionary("decoder")
    task = SimpleNamespace(source_dictionary=source, target_dictionary=target)
    args = Namespace(**{**arguments, "encoder_embed_path": None, "decoder_embed_path": None})
    with torch.device("meta"):
        model = ARCH_MODEL_REGISTRY[args.arch].build_model(args, task)
    for name, wanted in model.state_dict().items():
        found = state.get(name)
        if not torch.is_tensor(found) or found.shape != wanted.shape:
            shape = list(found.shape) if torch.is_tensor(found) else "missing"
            raise SharingError(
                f"the checkpoint's tensor {name}: {shape}; allowed: {list(wanted.shape)}, as the model's arguments say"
            )
