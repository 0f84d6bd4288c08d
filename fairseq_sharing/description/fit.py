"""How many tokens a device can train on in one step."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fairseq_sharing import flags
from fairseq_sharing.description.counts import vocabulary_size
from fairseq_sharing.description.step_memory import estimate
from fairseq_sharing.errors import SharingError

# Share of a device's memory that a plan uses; the rest is for the allocator, kernels and longer sentences.
USABLE = 0.8
# Words of a sentence of the counted batch. Only attention depends on it, and that is little.
LENGTH = 32


def fit_max_tokens(config: DictConfig, world_size: int, memory: int, data: Path, device: str = "cuda") -> DictConfig:
    """Choose ``train.max_tokens``, so that with more steps an update the wanted batch fits into memory.

    Args:
        config: the composed configuration, with ``tokens_per_batch``.
        world_size: devices that train together.
        memory: bytes of one device.
        data: the data directory, for the size of its dictionary.
        device: ``cuda`` or ``cpu``.

    Returns:
        A copy of the configuration with the largest ``train.max_tokens`` that divides the batch and fits.

    Raises:
        SharingError: no batch is wanted, the devices cannot share it, not even one sentence fits, or nobody can tell.
    """
    wanted = config.get("tokens_per_batch")
    if not isinstance(wanted, int) or wanted < 1 or wanted % world_size:
        raise SharingError(f"--fit-memory needs tokens_per_batch, a multiple of {world_size} devices; got {wanted}")
    found = estimate(flags.parse(config.train), vocabulary_size(data), LENGTH, USABLE * memory, device)
    share = wanted // world_size
    fitting = [tokens for tokens in range(LENGTH, min(found.longest_batch, share) + 1) if share % tokens == 0]
    if not fitting:
        raise SharingError(
            f"--fit-memory: the model takes {found.static / 2**30:.1f} GiB and {found.activations_a_token / 2**20:.2f}"
            f" MiB a token; {USABLE:.0%} of {memory / 2**30:.1f} GiB hold no {LENGTH} tokens or more that divide"
            f" {share}: change tokens_per_batch"
        )
    fitted = config.copy()
    OmegaConf.update(fitted, "train.max_tokens", fitting[-1])
    return fitted
