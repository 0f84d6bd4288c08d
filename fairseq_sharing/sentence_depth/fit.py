"""Fit a softmax regression: the classifier's weights for given targets."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# Weights of the L2 penalty to try: from nearly none to one that leaves little more than the most frequent depth.
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)


def fit(inputs: Tensor, targets: Tensor, classes: int, held_out: Tensor) -> tuple[Tensor, Tensor]:
    """Fit the weights, which have a unique optimum, and choose the L2 penalty on held-out examples.

    Args:
        inputs: examples x width.
        targets: the class of each example.
        classes: number of classes.
        held_out: marks the examples that are not fitted.

    Returns:
        Weight (classes x width) and bias (float64).
    """
    inputs = inputs.double()
    fitted, tested = (inputs[~held_out], targets[~held_out]), (inputs[held_out], targets[held_out])
    made = [_fit(*fitted, classes, penalty) for penalty in PENALTIES]
    losses = [float(functional.cross_entropy(functional.linear(tested[0], *one), tested[1])) for one in made]
    return made[losses.index(min(losses))]


def _fit(inputs: Tensor, targets: Tensor, classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    """Minimize the cross-entropy plus the L2 penalty on the weights of standardized inputs."""
    center, scale = inputs.mean(0), inputs.std(0, correction=0).clamp_min(1e-6)
    standard = (inputs - center) / scale
    weight = torch.zeros(classes, inputs.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(functional.linear(standard, weight, bias), targets)
        value = value + penalty / 2 * weight.square().sum() + 1e-6 / 2 * bias.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    plain = (weight / scale).detach()
    return plain, (bias - plain @ center).detach()
