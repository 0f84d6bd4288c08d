"""Checkpoints of tiny models to tie, and the models that load the results."""

from __future__ import annotations

import copy
import re
from argparse import Namespace

import torch
from sharing_cases import CASES, LAYERS, NORMS
from tiny_models import arguments, batch, build, perturb

from fairseq_sharing.checkpoints.initial_values import INITS

PLAIN = [case for case in CASES if "fast" not in case.options]
# Every rule with every map, each with one of the norms, which no rule looks at; every map and every rule has both.
TIED = [(case, NORMS[(m + r) % 2], init) for m, case in enumerate(PLAIN) for r, init in enumerate(INITS)]
TIED_IDS = [f"{case.name}-{norm}-{init}" for case, norm, init in TIED]
CYCLE = {"sharing": "cycle", "unique_layers": 3}
STACKS = ("encoder", "decoder")


def checkpoint_of(model, args: Namespace) -> dict:
    """A checkpoint as fairseq writes it, of a model that was not trained."""
    return {"cfg": {"model": args}, "model": copy.deepcopy(model.state_dict())}


def vanilla_checkpoint(norm: str = "post", seed: int = 1, **changes) -> dict:
    model = perturb(build(norm, seed=seed, arch="transformer", **changes))
    return checkpoint_of(model, arguments(norm, "transformer", **changes))


def load(tied: dict, norm: str = "post", **changes):
    """Load a tied checkpoint into the model that the command line gives."""
    model = build(norm, seed=9, **changes).eval()
    model.load_state_dict(tied["model"], strict=True)
    return model


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch())[0]


def own_layers(state: dict, stack: str) -> list[dict[str, torch.Tensor]]:
    layers: list[dict[str, torch.Tensor]] = [{} for _ in range(LAYERS)]
    for name, value in state.items():
        if match := re.fullmatch(rf"{stack}\.layers\.(\d+)\.(.+)", name):
            layers[int(match[1])][match[2]] = value
    return layers
