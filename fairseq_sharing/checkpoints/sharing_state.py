"""Store sharing in a state dict: each shared tensor once, and the layer maps.

Tensor names are those of fairseq's ``transformer``. A model's state dict has one entry that is not a tensor,
``_extra_state``. It contains plain lists and strings: the map and scope of each stack, and other shared names
(embeddings).
"""

from __future__ import annotations

import contextvars
import re
from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import nn

from fairseq_sharing.checkpoints.recorded_state import EXTRA_STATE, record, recorded_sharing
from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import (
    SCOPES,
    ComponentMap,
    StackSharing,
    format_component,
    format_sharing,
    num_unique,
    owners,
)
from fairseq_sharing.parameter_sets import complete, names_by_layer

# True while a model is initialized from another one (--finetune-from-model) instead of resumed.
initializing: contextvars.ContextVar[bool] = contextvars.ContextVar("initializing", default=False)


def find_aliases(model: nn.Module) -> dict[str, str]:
    """Map the names of shared parameters in a model.

    Returns:
        Each additional name of a Parameter -> its first name (``layers.3.fc1.weight`` -> ``layers.0.fc1.weight``).
    """
    first: dict[nn.Parameter, str] = {}
    return {
        name: first[parameter]
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if first.setdefault(parameter, name) != name
    }


def extra_state(sharing: Mapping[str, StackSharing], aliases: Mapping[str, str]) -> dict[str, Any]:
    """Make the entry of a state dict that records the sharing."""
    elsewhere = {name: owner for name, owner in aliases.items() if ".layers." not in name}
    return {**record(sharing), "aliases": elsewhere}


def layer_aliases(state: Mapping[str, Any], sharing: Mapping[str, StackSharing]) -> dict[str, str]:
    """Map the shared tensor names of saved stacks to the names of the stored tensors.

    Args:
        state: a model's state dict.
        sharing: the maps of each stack.

    Returns:
        Name of a shared tensor -> its name in the state dict.
    """
    return complete({stack: names_by_layer(state, stack) for stack in sharing}, sharing)


def fit_to_model(
    state: MutableMapping[str, Any], sharing: Mapping[str, StackSharing], aliases: Mapping[str, str]
) -> None:
    """Adapt a saved state dict to a model in place: compare the maps, then add the shared tensors.

    Args:
        state: a state dict of this package, of vanilla fairseq, or a materialized one.
        sharing: the model's map and scope of each stack.
        aliases: the model's shared names.

    Raises:
        SharingError: a different map or number of layers, or tied layers with different weights.
    """
    recorded = recorded_sharing(state)
    for stack, wanted in sharing.items():
        num_layers = count_layers(state, stack, recorded)
        if recorded[stack] == wanted if stack in recorded else num_layers == len(wanted.layer_map):
            continue
        plain = stack not in recorded or not recorded[stack].shares
        if initializing.get() and plain and not wanted.components and num_layers == num_unique(wanted.layer_map):
            _spread_layers(state, stack, wanted)
            continue
        had, given = f"{num_layers} vanilla layers", format_sharing(wanted)
        if stack in recorded:
            had, given = _difference(recorded[stack], wanted)
        flags = "--component-sharing, --cross-stack-sharing" if wanted.components else "--sharing"
        fewer = () if wanted.components else (num_unique(wanted.layer_map),)
        sizes = " or ".join(map(str, dict.fromkeys((*fewer, len(wanted.layer_map)))))
        raise SharingError(
            f"the checkpoint's {stack} has {had}, but the options --{stack.split('.')[0]}-layers and {flags} give "
            f"{given}; allowed: the options of its training, or "
            f"--finetune-from-model with a vanilla checkpoint of {sizes} layers"
        )
    for name, owner in aliases.items():
        if name not in state and owner in state:
            state[name] = state[owner]
        elif name in state and owner in state and not torch.equal(state[name], state[owner]):
            raise SharingError(
                f"the checkpoint has different weights for {owner} and {name}, which the model shares; "
                "allowed: --sharing none for a vanilla model with the same number of layers"
            )
    state.setdefault(EXTRA_STATE, extra_state(sharing, aliases))


def _difference(recorded: StackSharing, wanted: StackSharing) -> tuple[str, str]:
    """Describe a checkpoint's maps and the model's: of the first component that differs if components have maps."""
    if recorded.components or wanted.components:
        for component in SCOPES[1:]:
            had, given = (_component_map(shared, component) for shared in (recorded, wanted))
            if had != given:
                return f"the map {format_component(had)}", format_component(given)
    return f"the layer map {format_sharing(recorded)}", format_sharing(wanted)


def _component_map(sharing: StackSharing, component: str) -> ComponentMap:
    found = sharing.of_component(component)
    own = tuple(range(len(sharing.layer_map)))
    return ComponentMap(component, found.labels if found else own, found.space if found else "")


def count_layers(state: Mapping[str, Any], stack: str, recorded: Mapping[str, StackSharing]) -> int:
    """Count the layers of a saved stack, from its recorded map or the names of its tensors."""
    if stack in recorded:
        return len(recorded[stack].layer_map)
    numbers = [int(m[1]) for key in state if (m := re.match(rf"{stack}\.layers\.(\d+)\.", key))]
    return max(numbers, default=-1) + 1


def _spread_layers(state: MutableMapping[str, Any], stack: str, sharing: StackSharing) -> None:
    """Assign layer i of a vanilla state dict to the first layer that uses parameter set i."""
    layers = {key: state.pop(key) for key in list(state) if key.startswith(f"{stack}.layers.")}
    owner_of = owners(sharing.layer_map)
    for key, value in layers.items():
        index, _, name = key.removeprefix(f"{stack}.layers.").partition(".")
        state[f"{stack}.layers.{owner_of[int(index)]}.{name}"] = value


def explain_mismatch(error: RuntimeError) -> str:
    """Summarize torch's error about a state dict that does not fit in one line that names the flag to check."""
    lines = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
    line = next((line for line in lines if line.startswith("size mismatch")), lines[0] if lines else str(error))
    name = (re.search(r"(encoder|decoder)\.[\w.]+", line) or [""])[0]
    stack = name.split(".")[0] or "encoder"
    if ".fc1." in name or ".fc2." in name:
        flag = f"--{stack}-ffn-embed-dim"
    elif ".ffn." in name:
        flag = f"--ffn-experts, --{stack}-ffn-experts and --expert-dim"
    elif "_experts" in name or "_router." in name:
        flag = "--attention-experts and --head-dim"
    elif "embed_tokens" in name or "output_projection" in name:
        flag = f"the dictionary, --{stack}-embed-dim or --embedding-factor-dim"
    elif line.startswith("size mismatch"):
        flag = f"--{stack}-embed-dim"
    else:
        flag = "--arch and its options"
    return f"the checkpoint does not fit the model; check {flag}: {line[:300]}"
