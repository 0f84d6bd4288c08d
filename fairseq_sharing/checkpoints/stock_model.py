"""Compare weights with the model that their arguments describe, without allocating it."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from fairseq_sharing.errors import SharingError


def model_on_meta(arguments: Mapping[str, Any], state: Mapping[str, Any]) -> Any:
    """Build a registered model on torch's meta device, with dictionaries of the sizes of saved embeddings.

    Args:
        arguments: the model's arguments, including ``arch``.
        state: a state dict with its embeddings.

    Raises:
        SharingError: a model of this package rejects the arguments.
    """
    from fairseq.models import ARCH_MODEL_REGISTRY

    source, target = _dictionary(state, "encoder", "decoder"), _dictionary(state, "decoder", "encoder")
    task = SimpleNamespace(source_dictionary=source, target_dictionary=target, dictionary=source)
    args = Namespace(**{**arguments, "encoder_embed_path": None, "decoder_embed_path": None})
    with torch.device("meta"), _WithoutCopies():
        return ARCH_MODEL_REGISTRY[args.arch].build_model(args, task)


class _WithoutCopies(TorchFunctionMode):
    """Leave tensors on the meta device where fairseq copies them to the CPU to initialize them, as in RoBERTa."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Call a function, except for ``Tensor.cpu``."""
        return args[0] if func is torch.Tensor.cpu else func(*args, **(kwargs or {}))


def refuse_unfit(arguments: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Reject a state dict that stock fairseq's model with these arguments does not load.

    Args:
        arguments: a stock model's arguments, including ``arch``.
        state: the model's state dict, with all layers.

    Raises:
        SharingError: a tensor is missing or has the wrong shape; the message names it.
    """
    for name, wanted in model_on_meta(arguments, state).state_dict().items():
        refuse_unfit_tensor(name, state.get(name), wanted)


def refuse_unfit_tensor(name: str, found: Any, wanted: torch.Tensor) -> None:
    """Reject a tensor of a checkpoint that is missing or does not have the shape of the model's tensor."""
    if not torch.is_tensor(found) or found.shape != wanted.shape:
        shape = list(found.shape) if torch.is_tensor(found) else "missing"
        raise SharingError(
            f"the checkpoint's tensor {name}: {shape}; allowed: {list(wanted.shape)}, as the model's arguments say"
        )


def _dictionary(state: Mapping[str, Any], *stacks: str) -> Any:
    """Make a dictionary as large as the embeddings of the first of these stacks that has any."""
    from fairseq.data import Dictionary

    made = Dictionary()
    for stack in stacks:
        # fairseq's adaptive input divides the embeddings into bands.
        name = re.compile(rf"{stack}\.(sentence_encoder\.)?embed_tokens\.(embeddings\.\d+\.0\.)?weight")
        found = [value for key, value in state.items() if name.fullmatch(key) and torch.is_tensor(value)]
        size = sum(len(embedding) for embedding in found if embedding.dim())
        for number in range(len(made), size):
            made.add_symbol(f"{number}")
        if size:
            break
    return made
