"""Dropout that does not hold up a processor: torch draws its mask on CPU one number after the other."""

from __future__ import annotations

import torch
from fairseq.modules import FairseqDropout
from torch import Tensor, nn

# A 64-bit draw gives four of these.
_LEVELS = 1 << 16


class FastDropout(FairseqDropout):
    """fairseq's dropout, on CPU with a mask of 16 random bits an element.

    There the probability is rounded to 1/65536, and what is kept is scaled by the rounded one, so that the
    expectation stays exact (in bf16 to that type's rounding of the scale). Elsewhere it is torch's own.
    """

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:
        """Drop elements.

        Args:
            x: any shape.
            inplace: change ``x`` itself; only where that is torch's own.
        """
        dropping = self.p > 0 and (self.training or self.apply_during_inference)
        if not dropping or x.device.type != "cpu":
            return super().forward(x, inplace)
        return x * (_mask_operator(x.detach(), self.p) if torch.compiler.is_compiling() else keep_mask(x, self.p))


def keep_mask(x: Tensor, p: float) -> Tensor:
    """Draw the mask for a tensor on CPU: 0 where an element is dropped, else what keeps the expectation.

    Args:
        x: any shape.
        p: the probability of dropping, 0 to 1.

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


# The compiler cannot look into the drawing of random numbers: in its graph the mask is one operation.
@torch.library.custom_op(
    "fairseq_sharing::keep_mask", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,), device_types="cpu"
)
def _mask_operator(x: Tensor, p: float) -> Tensor:
    return keep_mask(x, p)


@_mask_operator.register_fake
def _(x: Tensor, _p: float) -> Tensor:
    return torch.empty_like(x)


def use_fast_dropout(model: nn.Module) -> None:
    """Replace every dropout of fairseq's in a model.

    Args:
        model: its shells are changed; it has no parameters or buffers more or less.
    """
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is FairseqDropout:
                setattr(module, name, FastDropout(child.p, child.module_name))
