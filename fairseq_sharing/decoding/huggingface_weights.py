"""The weights of a fairseq Transformer under the names of Hugging Face's classes, with Admin folded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from fairseq_sharing.adapters.effective import merge_state
from fairseq_sharing.admin.folding import residual_weights
from fairseq_sharing.layer_map import STACKS

Tensors = dict[str, torch.Tensor]

_EMBEDDINGS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight")
_TABLES = tuple(f"model.{stack}.embed_tokens.weight" for stack in STACKS)
_POSITIONS = tuple(f"{stack}.embed_positions.weight" for stack in STACKS)


@dataclass(frozen=True)
class Weights:
    """All tensors that a model uses, by Hugging Face's names.

    Attributes:
        tensors: the tensors; shared ones are the same object.
        tied_embeddings: whether source, target and output use one table.
        folded_positions: whether the positions are not plain sinusoids, because Admin's weights are folded into them.
    """

    tensors: Tensors
    tied_embeddings: bool
    folded_positions: bool


def convert_weights(model: Any, family: str, name: str) -> Weights:
    """Rename the weights of a model and fold Admin's residual weights.

    Args:
        model: fairseq's model, in evaluation mode.
        family: ``fsmt`` for post-norm, ``m2m100`` for pre-norm.
        name: name of the model in error messages.

    Returns:
        The tensors of all N layers, in single precision.

    Raises:
        SharingError: a residual weight of Admin is too small.
    """
    originals: dict[str, torch.Tensor] = {
        key: parameter
        for key, parameter in model.named_parameters(remove_duplicate=False)
        if not key.endswith(".residual_weight")
    }
    originals = merge_state(originals)
    if family == "fsmt":
        originals |= dict.fromkeys(_POSITIONS, _sinusoids(model))
    tensors = {key: original.detach().float() for key, original in originals.items()}
    folded = _fold(model, tensors, name)
    tensors = _shared(originals, tensors)
    tied = len({id(tensors[table]) for table in _EMBEDDINGS}) == 1
    renamed = {_renamed(key, family): tensor for key, tensor in tensors.items()}
    if family == "m2m100":
        # One number of rows for both tables: the rows of words that the source dictionary lacks are never used.
        source, target = (renamed[table] for table in _TABLES)
        if len(source) < len(target):
            renamed[_TABLES[0]] = functional.pad(source, (0, 0, 0, len(target) - len(source)))
        renamed["model.shared.weight"] = renamed[_TABLES[0]]
    return Weights(renamed, tied, folded)


def _sinusoids(model: Any) -> torch.Tensor:
    """Compute the sinusoids of all positions, after the two rows that fairseq does not use."""
    from fairseq.modules import SinusoidalPositionalEmbedding

    padding, positions = model.encoder.padding_idx, max(model.max_positions())
    return SinusoidalPositionalEmbedding.get_embedding(positions + padding + 1, model.cfg.encoder.embed_dim, padding)


def _fold(model: Any, tensors: Tensors, name: str) -> bool:
    """Fold Admin's residual weights, and return whether there are any."""
    found = False
    for stack in STACKS:
        for residual in residual_weights(getattr(model, stack), f"{name}: {stack}"):
            found, weight = True, torch.from_numpy(residual.weight).float()
            if residual.before is None:
                scaled = [f"{stack}.embed_tokens.weight", f"{stack}.embed_positions.weight"]
            else:
                scaled = [f"{stack}.{residual.before}.{part}" for part in ("weight", "bias")]
            for key in scaled:
                tensors[key] = tensors[key] * weight
            for layer in residual.first:
                tensors[f"{stack}.{layer}.weight"] = tensors[f"{stack}.{layer}.weight"] / weight
    return found


def _shared(originals: Mapping[str, torch.Tensor], tensors: Tensors) -> Tensors:
    """Use one object for tensors that were one parameter and are still equal."""
    kept: dict[int, list[torch.Tensor]] = {}
    found = {}
    for key, tensor in tensors.items():
        same = kept.setdefault(id(originals[key]), [])
        found[key] = next((other for other in same if torch.equal(other, tensor)), tensor)
        if found[key] is tensor:
            same.append(tensor)
    return found


def _renamed(name: str, family: str) -> str:
    if family == "m2m100" and name == "decoder.output_projection.weight":
        return "lm_head.weight"
    return f"model.{name}"


def all_layers(weights: Weights, aliases: Iterable[str]) -> Tensors:
    """Return the tensors that a stock class reads, each with its own storage.

    Args:
        weights: all tensors.
        aliases: names that the class itself ties.
    """
    known = set(aliases)
    return {name: tensor.clone() for name, tensor in weights.tensors.items() if name not in known}


def stored_once(weights: Weights, aliases: Iterable[str]) -> tuple[Tensors, dict[str, str]]:
    """Return each shared tensor once, and the modules and parameters that use the weights of others.

    Args:
        weights: all tensors.
        aliases: names that the class itself ties.

    Returns:
        The tensors by the name of their owner, and ``shared_weights`` of the configuration.
    """
    known = set(aliases)
    tensors = {name: tensor for name, tensor in weights.tensors.items() if name not in known}
    if not weights.folded_positions:
        tensors = {name: tensor for name, tensor in tensors.items() if name.removeprefix("model.") not in _POSITIONS}
    owners: dict[int, str] = {}
    ties = {name: owner for name, tensor in tensors.items() if (owner := owners.setdefault(id(tensor), name)) != name}
    stored = {name: tensor.clone() for name, tensor in tensors.items() if name not in ties}
    return stored, whole_modules(ties, tensors)


def whole_modules(ties: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """Shorten a list of tied parameters: name a module instead of its parameters if all of them are tied to another.

    Args:
        ties: name of each tied parameter -> name of its owner.
        names: names of all parameters.

    Returns:
        The same ties by the largest modules, and by parameters elsewhere.
    """
    everything = list(names)
    found: dict[str, str] = {}
    for name in ties:
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            module = ".".join(parts[:end])
            if module in found:
                break
            inside = [one for one in everything if one == module or one.startswith(f"{module}.")]
            owners = {_owner(ties.get(one), one[len(module) :]) for one in inside}
            if len(owners) == 1 and (owner := owners.pop()) is not None:
                found[module] = owner
                break
    return found


def _owner(tied_to: str | None, rest: str) -> str | None:
    """Return the module that owns a parameter with a name relative to it; None if there is no such module."""
    return tied_to.removesuffix(rest) if tied_to is not None and tied_to.endswith(rest) else None
