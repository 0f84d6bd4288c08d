"""How many tokens a device can train on in one step: the memory that a model takes, found without storage."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from fairseq_sharing.description import build_without_storage, model_arguments, run_without_storage, vocabulary_size
from fairseq_sharing.errors import SharingError

VALUE = 4  # bytes of a value in fp32: an upper bound for --precision bf16, fp16 and amp
# Weights, gradients, and two moments of Adam, the optimizer with the most.
STATES = 4
# Share of a device's memory that a plan uses; the rest is for the allocator, kernels and longer sentences.
USABLE = 0.8
# Words of a sentence of the counted batch. Only attention depends on it, and that is little.
LENGTH = 32


def fit_max_tokens(config: DictConfig, world_size: int, memory: int, data: Path) -> DictConfig:
    """Choose ``train.max_tokens``, so that with more steps an update the wanted batch fits into memory.

    Args:
        config: the composed configuration, with ``tokens_per_batch``.
        world_size: devices that train together.
        memory: bytes of one device.
        data: the data directory, for the size of its dictionary.

    Returns:
        A copy of the configuration with the largest ``train.max_tokens`` that divides the batch and fits.

    Raises:
        SharingError: no batch is wanted, the devices cannot share it, or not even one sentence fits.
    """
    wanted = config.get("tokens_per_batch")
    if not isinstance(wanted, int) or wanted < 1 or wanted % world_size:
        raise SharingError(f"--fit-memory needs tokens_per_batch, a multiple of {world_size} devices; got {wanted}")
    args = model_arguments({**config.train, "max_tokens": wanted})
    fixed, each = training_bytes(args, vocabulary_size(data))
    most = int((USABLE * memory - fixed) / each)
    share = wanted // world_size
    fitting = [tokens for tokens in range(LENGTH, min(most, share) + 1) if share % tokens == 0]
    if not fitting:
        raise SharingError(
            f"--fit-memory: the model takes {fixed / 2**30:.1f} GiB and {each / 2**20:.2f} MiB a token; {USABLE:.0%} of"
            f" {memory / 2**30:.1f} GiB hold no {LENGTH} tokens or more that divide {share}: change tokens_per_batch"
        )
    fitted = config.copy()
    OmegaConf.update(fitted, "train.max_tokens", fitting[-1])
    return fitted


def training_bytes(args: Namespace, vocabulary: int, sentences: int = 4) -> tuple[int, float]:
    """Count what training takes in fp32.

    Args:
        args: fairseq's arguments of the model.
        vocabulary: symbols of the dictionary.
        sentences: sentences of the counted batch.

    Returns:
        Bytes whatever the batch: weights, gradients, optimizer. Bytes a token: all that the forward pass keeps for the
        backward pass, and the gradients of the output.
    """
    model = build_without_storage(args, vocabulary).train()
    fixed = STATES * VALUE * sum(parameter.numel() for parameter in model.parameters())
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        log_probs = run_without_storage(model, LENGTH, sentences).log_softmax(-1)
    activations = sum(storage.nbytes() for storage in kept.values())
    gradients = 2 * log_probs.numel() * VALUE  # of the log-probabilities, and of the output before
    return fixed, (activations + gradients) / (LENGTH * sentences)
