"""At which depth each step of a training runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fairseq_sharing.depths.settings import Setting

# Standard deviation of the logarithm of the rate in Huginn's distribution.
SIGMA = 0.5
_NODES = 100  # of the Gauss-Hermite quadrature over the rate


@dataclass(frozen=True)
class Depths:
    """The depths that a model is trained at.

    Args:
        settings: one depth per stack; the last setting runs all layers.
        probabilities: the share of each setting in the steps, or its weight in the aligned loss.
        seed: the seed of the training.
        aligned: train all depths of the decoder from one pass, instead of one sampled depth per step.
    """

    settings: tuple[Setting, ...]
    probabilities: tuple[float, ...]
    seed: int = 1
    aligned: bool = False

    def draw(self, update: int, micro_batch: int) -> Setting:
        """Draw the setting of a step.

        It depends on the seed, the update and the micro-batch only: it is equal on all ranks and after a restart.

        Args:
            update: number of updates so far.
            micro_batch: index of the batch within the update (``--update-freq``).
        """
        value = np.random.default_rng((self.seed % 2**32, update, micro_batch)).random()
        index = int(np.searchsorted(np.cumsum(self.probabilities), value, side="right"))
        return self.settings[min(index, len(self.settings) - 1)]


def with_full_share(weights: Sequence[float], full_share: float) -> tuple[float, ...]:
    """Turn weights into probabilities in which the last setting, all layers, has a given share."""
    *smaller, _ = weights
    total = sum(smaller)
    return (*((1 - full_share) * weight / total for weight in smaller), full_share)


def poisson_lognormal(depths: Sequence[int]) -> list[float]:
    """Return Huginn's distribution over a list of depths, with the mean of the list before it is limited to the list.

    A number of layers n is 1 plus a Poisson variable with a log-normal rate of mean r, and the nearest listed depth
    (of two, the smaller) is used.

    Args:
        depths: the depths in ascending order.

    Source: Geiping et al. 2025, "Scaling up Test-Time Compute with Latent Reasoning" (Huginn).
    """
    rate = sum(depths) / len(depths) - 1
    counts = np.arange(1, depths[-1])
    probabilities = [float(p) for p in poisson_lognormal_pmf(rate, len(counts))]
    result = [0.0] * len(depths)
    for count, probability in zip(counts, probabilities, strict=True):
        nearest = min(range(len(depths)), key=lambda index: (abs(depths[index] - count), index))
        result[nearest] += probability
    result[-1] += 1 - sum(probabilities)
    return result


def poisson_lognormal_pmf(rate: float, most: int) -> np.ndarray:
    """Return the probabilities of 1 to ``most``: 1 plus a Poisson variable with a log-normal rate of a given mean."""
    nodes, weights = np.polynomial.hermite.hermgauss(_NODES)
    rates = np.exp(math.log(rate) - SIGMA**2 / 2 + SIGMA * math.sqrt(2) * nodes)
    events = np.arange(most)[:, None]
    factorials = np.array([math.lgamma(count + 1) for count in range(most)])[:, None]
    return np.exp(events * np.log(rates) - rates - factorials) @ weights / math.sqrt(math.pi)
