"""Fast dropout on CPU, where torch draws the mask one number at a time."""

from __future__ import annotations

import torch
from fairseq.modules import FairseqDropout
from torch import Tensor, nn

# A 64-bit draw gives four of these.
_LEVELS = 1 << 16


class FastDropout(FairseqDropout):
    """fairseq's dropout; on CPU, the mask uses 16 random bits per element.

    On CPU, the probability is rounded to a multiple of 1/65536. The kept elements are scaled by the rounded
    probability, so the expectation is exact (in bf16, up to rounding of the scale). On other devices, torch's dropout
    runs.
    """

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:
        """Apply dropout.

        Args:
            x: any shape.
            inplace: change ``x`` in place; only where torch's dropout runs.
        """
        dropping = self.p > 0 and (self.training or self.apply_during_inference)
        if not dropping or x.device.type != "cpu":
            return super().forward(x, inplace)
        return x * (_mask_operator(x.detach(), self.p) if torch.compiler.is_compiling() else keep_mask(x, self.p))


def keep_mask(x: Tensor, p: float) -> Tensor:
    """Draw the mask for a tensor on CPU: 0 for dropped elements, otherwise the scale that preserves the expectation.

    Args:
        x: any shape.
        p: dropout probability, 0 to 1.

    Returns:
        A mask of the tensor's shape and type.
    """
    dropped = round(p * _LEVELS)
    if dropped == _LEVELS:
        return torch.zeros_like(x)
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    bits = draws.view(torch.int16)[: x.numel()].view(x.shape)
    kept = bits >= dropped - _LEVELS // 2
    return kept.to(x.dtype).mul_(_LEVELS / (_LEVELS - dropped))


# The compiler cannot trace the random number generation, so the mask is one custom operator in its graph.
@torch.library.custom_op(
    "fairseq_sharing::keep_mask", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,), device_types="cpu"
)
def _mask_operator(x: Tensor, p: float) -> Tensor:
    return keep_mask(x, p)


@_mask_operator.register_fake
def _(x: Tensor, _p: float) -> Tensor:
    return torch.empty_like(x)


def use_fast_dropout(model: nn.Module) -> None:
    """Replace every fairseq dropout module in a model.

    Args:
        model: the model. Its modules change; its parameters and buffers do not.
    """
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is FairseqDropout:
                setattr(module, name, FastDropout(child.p, child.module_name))
