"""fairseq's Adam with torch's fused kernel on CPU and GPU: one pass over the parameters instead of ten."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from fairseq.optim import register_optimizer
from fairseq.optim.adam import Adam, FairseqAdam, FairseqAdamConfig
from torch.optim.adamw import adamw


class _FusedAdam(Adam):
    """The same update and state as fairseq's Adam, up to rounding."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        if any(p.dtype != torch.float32 for group in self.param_groups for p in group["params"]):
            return super().step(closure)  # half-precision weights are updated through fp32 copies
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            by_step = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    if not state:
                        zeros = torch.zeros_like
                        state.update(step=0, exp_avg=zeros(parameter), exp_avg_sq=zeros(parameter))
                    state["step"] += 1
                    by_step[state["step"]].append(parameter)
            for step, parameters in by_step.items():
                self._update(group, step, parameters)
        return loss

    @torch.no_grad()
    def _update(self, group: dict[str, Any], step: int, parameters: list[torch.Tensor]) -> None:
        states = [self.state[parameter] for parameter in parameters]
        beta1, beta2 = group["betas"]
        counts = torch.full((len(parameters),), step - 1.0, device=parameters[0].device).unbind()
        adamw(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            list(counts),
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            # fairseq adds epsilon before the bias correction, torch after it.
            eps=group["eps"] / math.sqrt(1 - beta2**step),
            maximize=False,
        )


@register_optimizer("fused_adam", dataclass=FairseqAdamConfig)
class FusedFairseqAdam(FairseqAdam):
    """``--optimizer fused_adam``: a faster ``adam`` with fairseq's options and state."""

    def __init__(self, cfg: FairseqAdamConfig, params: Iterable[torch.nn.Parameter]):
        super().__init__(cfg, params)
        self._optimizer = _FusedAdam(params, **self.optimizer_config)


# fairseq compares class names on resume. An equal name lets plain and fused runs resume from each other's checkpoints.
FusedFairseqAdam.__name__ = FairseqAdam.__name__
