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

from fairseq_sharing.checkpoints.recorded_state import EXTRA_STATE, recorded_extra
from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import StackSharing, format_map, num_unique, owners
from fairseq_sharing.tying import in_scope

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
    stacks = {stack: {"layer_map": list(s.layer_map), "scope": list(s.scope)} for stack, s in sharing.items()}
    elsewhere = {name: owner for name, owner in aliases.items() if ".layers." not in name}
    return {"stacks": stacks, "aliases": elsewhere}


def recorded_sharing(state: Mapping[str, Any]) -> dict[str, StackSharing]:
    """Read the maps of a model's state dict; empty for a vanilla fairseq model.

    Raises:
        SharingError: the recorded sharing is malformed.
    """
    stacks = recorded_extra(state).get("stacks", {})
    return {name: StackSharing(tuple(s["layer_map"]), tuple(s["scope"])) for name, s in stacks.items()}


def layer_aliases(state: Mapping[str, Any], stack: str, sharing: StackSharing) -> dict[str, str]:
    """Map the shared tensor names of a saved stack to the names of the stored tensors.

    Args:
        state: a model's state dict.
        stack: ``encoder`` or ``decoder``.
        sharing: its map and scope.

    Returns:
        Name of a shared tensor -> its name in the state dict.
    """
    aliases = {}
    by_layer: dict[int, list[str]] = {}
    for key in state:
        match = re.match(rf"{stack}\.layers\.(\d+)\.(.+)", key)
        if match:
            by_layer.setdefault(int(match[1]), []).append(match[2])
    for depth, group in enumerate(sharing.layer_map):
        owner = sharing.layer_map.index(group)
        for name in by_layer.get(owner, ()) if owner != depth else ():
            if in_scope(name, sharing.scope) and name not in by_layer.get(depth, ()):
                aliases[f"{stack}.layers.{depth}.{name}"] = f"{stack}.layers.{owner}.{name}"
    return aliases


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
        if initializing.get() and plain and num_layers == num_unique(wanted.layer_map):
            _spread_layers(state, stack, wanted)
            continue
        had = f"{num_layers} vanilla layers"
        if stack in recorded:
            had = f"the layer map {format_map(recorded[stack].layer_map)} ({','.join(recorded[stack].scope)})"
        sizes = " or ".join(map(str, dict.fromkeys((num_unique(wanted.layer_map), len(wanted.layer_map)))))
        raise SharingError(
            f"the checkpoint's {stack} has {had}, but the options --{stack.split('.')[0]}-layers and --sharing give "
            f"{format_map(wanted.layer_map)} ({','.join(wanted.scope)}); allowed: the options of its training, or "
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
