"""Tiny models with depth parameters."""

from __future__ import annotations

from tiny_models import build, perturb

# Options of each kind, and of all of them.
KINDS = {
    "lora": {"depth_lora": 4},
    "lora_of": {"depth_lora": 3, "depth_lora_of": "v,fc1"},
    "scale": {"depth_scale": True},
    "bias": {"depth_bias": True},
    "norm": {"depth_norm": True},
}
ALL = {"depth_lora": 4, "depth_scale": True, "depth_bias": True, "depth_norm": True}
KINDS["all"] = ALL
CYCLE = {"sharing": "cycle", "unique_layers": 3}


def adapted(norm: str = "post", *, seed: int = 1, **options):
    """Build a model with Cycle, all kinds and perturbed weights, in eval mode."""
    return perturb(build(norm, seed=seed, **{**CYCLE, **ALL, **options})).eval()
