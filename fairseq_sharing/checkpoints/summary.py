"""Summarize a checkpoint: architecture, sharing and sizes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from fairseq_sharing.adapters.effective import is_adapter
from fairseq_sharing.checkpoints.arguments import model_arguments
from fairseq_sharing.checkpoints.files import load_checkpoint
from fairseq_sharing.checkpoints.recorded_state import recorded_sharing
from fairseq_sharing.checkpoints.sharing_state import count_layers, layer_aliases
from fairseq_sharing.layer_map import STACKS, StackSharing, num_unique


def describe_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Summarize a checkpoint.

    Returns:
        arch; sharing, layers, unique_layers, layer_map and scope by stack; components, the map of each component that
        shares (or of ``layer``) by stack; parameters {unique, effective} (number of values; effective counts a shared
        tensor once per layer that uses it, and no adapters, which change tensors without adding any); updates.

    Raises:
        SharingError: no such file, or not a checkpoint.
    """
    checkpoint = load_checkpoint(path)
    state, args = checkpoint["model"], model_arguments(checkpoint)
    sharing = recorded_sharing(state)
    for stack in STACKS:
        if stack not in sharing and (n := count_layers(state, stack, {})):
            sharing[stack] = StackSharing(tuple(range(n)))
    # fairseq's version buffers are not parameters.
    sizes = {
        name: value.numel()
        for name, value in state.items()
        if torch.is_tensor(value) and not name.endswith(("version", "_float_tensor")) and name not in _copies(args)
    }
    borrowed = [sizes[owner] for owner in layer_aliases(state, sharing).values()]
    adapters = sum(size for name, size in sizes.items() if is_adapter(name))
    history = checkpoint.get("optimizer_history") or [{}]
    strategies = {stack: _strategy(stack.split(".")[0], args) for stack in sharing}
    return {
        "arch": args.get("arch"),
        "sharing": strategies,
        "layers": {stack: len(s.layer_map) for stack, s in sharing.items()},
        "unique_layers": {stack: num_unique(s.layer_map) for stack, s in sharing.items()},
        "layer_map": {stack: list(s.layer_map) for stack, s in sharing.items()},
        "scope": {stack: list(s.scope) for stack, s in sharing.items()},
        "components": {stack: {c.component: list(c.labels) for c in s.maps} for stack, s in sharing.items()},
        "parameters": {"unique": sum(sizes.values()), "effective": sum(sizes.values()) + sum(borrowed) - adapters},
        "updates": history[-1].get("num_updates"),
    }


def _strategy(stack: str, args: Mapping[str, Any]) -> str:
    """Return the strategy of a stack; ``components`` if flags give components their own."""
    names = ("component_sharing", f"{stack}_component_sharing", "cross_stack_sharing")
    if any(args.get(name) for name in names):
        return "components"
    return args.get(f"{stack}_sharing") or args.get("sharing") or "none"


def _copies(args: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of embeddings that plain fairseq stores although they are those of another name."""
    if args.get("share_all_embeddings"):
        return ("decoder.embed_tokens.weight", "decoder.output_projection.weight")
    return ("decoder.output_projection.weight",) if args.get("share_decoder_input_output_embed") else ()
