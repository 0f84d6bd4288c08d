"""Choose ``max_tokens`` by device memory."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fairseq_sharing import flags
from fairseq_sharing.description.counts import vocabulary_size
from fairseq_sharing.description.step_memory import estimate
from fairseq_sharing.errors import SharingError

# Fraction of device memory to use; the rest is for the allocator, kernels and longer sentences.
USABLE = 0.8
# Tokens per sentence in the batch of the estimate. Only attention depends on it, and only slightly.
LENGTH = 32


def fit_max_tokens(config: DictConfig, world_size: int, memory: int, data: Path, device: str = "cuda") -> DictConfig:
    """Choose ``train.max_tokens`` so that a step fits into memory; ``update_freq`` keeps the batch size.

    Args:
        config: the composed configuration, with ``tokens_per_batch``.
        world_size: number of devices.
        memory: memory of one device, in bytes.
        data: the data directory, for the size of its dictionary.
        device: ``cuda`` or ``cpu``.

    Returns:
        A copy of the configuration with the largest ``train.max_tokens`` that divides the batch and fits.

    Raises:
        SharingError: ``tokens_per_batch`` is not set or not divisible by the number of devices, not even one sentence
            fits, or the memory cannot be estimated.
    """
    wanted = config.get("tokens_per_batch")
    if not isinstance(wanted, int) or wanted < 1 or wanted % world_size:
        raise SharingError(f"--fit-memory: needs tokens_per_batch, a multiple of {world_size} devices, got {wanted}")
    found = estimate(flags.parse(config.train), vocabulary_size(data), LENGTH, USABLE * memory, device)
    share = wanted // world_size
    fitting = [tokens for tokens in range(LENGTH, min(found.longest_batch, share) + 1) if share % tokens == 0]
    if not fitting:
        raise SharingError(
            f"--fit-memory: the model takes {found.static / 2**30:.1f} GiB and {found.activations_a_token / 2**20:.2f}"
            f" MiB per token; in {USABLE:.0%} of {memory / 2**30:.1f} GiB, no max_tokens of at least {LENGTH} that"
            f" divides {share} fits; change tokens_per_batch"
        )
    fitted = config.copy()
    OmegaConf.update(fitted, "train.max_tokens", fitting[-1])
    return fitted
