"""Load depth parameters: compare their kinds with those of a checkpoint, and initialize what it lacks."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

from torch import nn

from fairseq_sharing.adapters.kinds import DepthKinds
from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import StackSharing
from fairseq_sharing.parameter_sets import SetKey, full_name, set_of
from fairseq_sharing.tying import depth_names


def fit_depth_parameters(
    state: MutableMapping[str, Any],
    found: DepthKinds,
    wanted: DepthKinds,
    stacks: Mapping[str, nn.Module],
    sharing: Mapping[str, StackSharing],
    initializing: bool,
) -> None:
    """Adapt a saved state dict to a model with other depth parameters in place.

    Adapters and factors that the checkpoint lacks start without effect; biases and norms, at those of the layer whose
    parameter set the depth uses.

    Args:
        state: a model's state dict.
        found: the kinds in it.
        wanted: the kinds of the model.
        stacks: the stacks of the model by name.
        sharing: the map and scope of each.
        initializing: whether a model starts from the checkpoint (``--finetune-from-model``).

    Raises:
        SharingError: the kinds differ, and the model does not only add some to start from the checkpoint.
    """
    if found == wanted:
        return
    had, has = (f"{kinds.flags}" if kinds else "no depth parameters" for kinds in (found, wanted))
    adds = (not found.rank or found.rank == wanted.rank) and set(found.of) <= set(wanted.of)
    adds = adds and all(getattr(wanted, name) >= getattr(found, name) for name in ("scale", "bias", "norm"))
    if not adds or not initializing:
        allowed = "the options of its training" if found else "--finetune-from-model, or leave them out"
        allowed += ", or fairseq-sharing untie --merge" if found and not wanted else ""
        raise SharingError(f"the checkpoint has {had}, but the options give {has}; allowed: {allowed}")
    owners: dict[SetKey, str] = {}
    for stack, module in stacks.items():
        for depth, layer in enumerate(module.get_submodule("layers").children()):
            for name in depth_names(layer):
                full, key = full_name(stack, depth, name), set_of(name, depth, stack, sharing[stack])
                owner = full if key is None else owners.setdefault(key, full)
                if full not in state:
                    state[full] = state.get(owner, layer.get_parameter(name).detach())
