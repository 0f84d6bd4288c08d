"""Checkpoints: each shared tensor once, with the layer map beside it; reading and materialising them.

Tensor names are those of fairseq's ``transformer``. A model's state dict has one entry that is no tensor,
``_extra_state``, of plain lists and strings: the map and scope of each stack, and what else is shared (embeddings).
"""

from __future__ import annotations

import contextvars
import os
import re
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import STACKS, StackSharing, format_map, num_unique, owners
from fairseq_sharing.plain import NUMPY_READERS, explain_unreadable, to_plain
from fairseq_sharing.tying import in_scope

EXTRA_STATE = "_extra_state"
# What the names of this package's faster losses and optimizers begin with; fairseq's own names follow.
FUSED = "fused_"
# True while a model starts from the weights of another one (--finetune-from-model) instead of going on.
initialising: contextvars.ContextVar[bool] = contextvars.ContextVar("initialising", default=False)


def find_aliases(model: nn.Module) -> dict[str, str]:
    """Name what is shared in a model.

    Returns:
        Each further name of a Parameter -> its first name (``layers.3.fc1.weight`` -> ``layers.0.fc1.weight``).
    """
    first: dict[nn.Parameter, str] = {}
    return {
        name: first[parameter]
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if first.setdefault(parameter, name) != name
    }


def extra_state(sharing: Mapping[str, StackSharing], aliases: Mapping[str, str]) -> dict[str, Any]:
    """Make the entry of a state dict that says what is shared."""
    stacks = {stack: {"layer_map": list(s.layer_map), "scope": list(s.scope)} for stack, s in sharing.items()}
    elsewhere = {name: owner for name, owner in aliases.items() if ".layers." not in name}
    return {"stacks": stacks, "aliases": elsewhere}


def recorded_sharing(state: Mapping[str, Any]) -> dict[str, StackSharing]:
    """Read the maps of a model's state dict; empty for a vanilla fairseq model."""
    stacks = (state.get(EXTRA_STATE) or {}).get("stacks", {})
    return {name: StackSharing(tuple(s["layer_map"]), tuple(s["scope"])) for name, s in stacks.items()}


def layer_aliases(state: Mapping[str, Any], stack: str, sharing: StackSharing) -> dict[str, str]:
    """Name what the layers of a saved stack borrow, from the names of what their owners have.

    Args:
        state: a model's state dict.
        stack: ``encoder`` or ``decoder``.
        sharing: its map and scope.

    Returns:
        Borrowed name -> name in the state dict.
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
    """Make a saved state dict fit a model, in place: compare the maps, then fill in the shared tensors.

    Args:
        state: a state dict of this project, of vanilla fairseq, or a materialised one.
        sharing: the model's map and scope of each stack.
        aliases: the model's shared names.

    Raises:
        SharingError: another map, another number of layers, or tied layers with different weights.
    """
    recorded = recorded_sharing(state)
    for stack, wanted in sharing.items():
        num_layers = _count_layers(state, stack, recorded)
        if recorded[stack] == wanted if stack in recorded else num_layers == len(wanted.layer_map):
            continue
        plain = stack not in recorded or not recorded[stack].shares
        if initialising.get() and plain and num_layers == num_unique(wanted.layer_map):
            _spread_layers(state, stack, wanted)
            continue
        had = format_map(recorded[stack].layer_map) if stack in recorded else f"{num_layers} vanilla layers"
        had += f" ({','.join(recorded[stack].scope)})" if stack in recorded else ""
        raise SharingError(
            f"the checkpoint's {stack} has the layer map {had}, the options --{stack.split('.')[0]}-layers and "
            f"--sharing give {format_map(wanted.layer_map)} ({','.join(wanted.scope)}); allowed: the options it was "
            "trained with, or --finetune-from-model with a vanilla checkpoint of "
            f"{num_unique(wanted.layer_map)} or the same layers"
        )
    for name, owner in aliases.items():
        if name not in state and owner in state:
            state[name] = state[owner]
        elif name in state and owner in state and not torch.equal(state[name], state[owner]):
            raise SharingError(
                f"the checkpoint has different weights for {owner} and {name}, which the model shares; "
                "allowed: --sharing none for a vanilla model of as many layers"
            )
    state.setdefault(EXTRA_STATE, extra_state(sharing, aliases))


def _count_layers(state: Mapping[str, Any], stack: str, recorded: Mapping[str, StackSharing]) -> int:
    if stack in recorded:
        return len(recorded[stack].layer_map)
    numbers = [int(m[1]) for key in state if (m := re.match(rf"{stack}\.layers\.(\d+)\.", key))]
    return max(numbers, default=-1) + 1


def _spread_layers(state: MutableMapping[str, Any], stack: str, sharing: StackSharing) -> None:
    """Give layer i of a vanilla state dict to the owner of parameter set i."""
    layers = {key: state.pop(key) for key in list(state) if key.startswith(f"{stack}.layers.")}
    owner_of = owners(sharing.layer_map)
    for key, value in layers.items():
        index, _, name = key.removeprefix(f"{stack}.layers.").partition(".")
        state[f"{stack}.layers.{owner_of[int(index)]}.{name}"] = value


def explain_mismatch(error: RuntimeError) -> str:
    """Put torch's many lines about a state dict that does not fit into one that names the flag to look at."""
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
        flag = f"the dictionary or --{stack}-embed-dim"
    elif line.startswith("size mismatch"):
        flag = f"--{stack}-embed-dim"
    else:
        flag = "--arch and its options"
    return f"the checkpoint does not fit the model, look at {flag}: {line[:300]}"


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint file to the CPU, without executing any code in it.

    Raises:
        SharingError: no such file, one that torch cannot read safely, or one without a model.
    """
    try:
        with torch.serialization.safe_globals(NUMPY_READERS):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SharingError(f"{path}: no such checkpoint") from None
    except Exception as error:  # a damaged file fails in torch's reader in many ways
        raise SharingError(f"{path}: {explain_unreadable(error)}") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("model"), Mapping):
        raise SharingError(f"{path}: not a fairseq checkpoint, there is no model in it")
    return checkpoint


def save_atomically(obj: Any, path: str | os.PathLike[str]) -> None:
    """Write a checkpoint under a temporary name, flush it to the disk, then rename it: never half a file.

    Raises:
        SharingError: something in it is neither a tensor nor a plain value, so that it could not be read again.
    """
    temporary = f"{os.fspath(path)}.tmp"
    with open(temporary, "wb") as file:
        torch.save(to_plain(obj), file)
        _flush(file)
    if unsafe := torch.serialization.get_unsafe_globals_in_checkpoint(temporary):
        os.remove(temporary)
        raise SharingError(
            f"{path}: not written, because it could not be read again: it would contain {', '.join(sorted(unsafe))}; "
            "allowed: tensors and plain values"
        )
    os.replace(temporary, path)
    flush_directory(path)


def copy_atomically(source: str, target: str) -> None:
    """Copy a file so that the target is never half a file."""
    temporary = f"{target}.tmp"
    with open(source, "rb") as original, open(temporary, "wb") as file:
        while block := original.read(1 << 24):
            file.write(block)
        _flush(file)
    os.replace(temporary, target)
    flush_directory(target)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def flush_directory(path: str | os.PathLike[str]) -> None:
    """Flush the folder of a file, so that its new name survives a power cut."""
    descriptor = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def materialise(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Turn a checkpoint into one of stock fairseq's ``transformer``: all N layers, plain dicts only.

    Args:
        checkpoint: what ``load_checkpoint`` gave; not changed.

    Returns:
        The stock checkpoint, without optimizer state. Layers that shared a tensor still share its storage, so that the
        file is no larger.

    Raises:
        SharingError: not a model of the transformer_sharing family, or one with parts that stock fairseq has not.
    """
    model_args = model_arguments(checkpoint)
    arch = str(model_args.get("arch", ""))
    if not arch.startswith("transformer_sharing"):
        raise SharingError(f"--materialise writes transformer_sharing models, this one is {arch or 'unknown'}")
    for option in ("admin", "depth_signal", "act"):
        if model_args.get(option, "off") != "off":
            flag = f"--{option.replace('_', '-')} {model_args[option]}"
            allowed = "; allowed: --to ctranslate2" if option == "admin" else ""
            raise SharingError(
                f"--materialise cannot write a model with {flag}: stock fairseq has no such layers{allowed}"
            )
    if model_args.get("position_per_depth"):
        raise SharingError("--materialise cannot write a model with --position-per-depth: stock fairseq has it not")
    state = dict(checkpoint["model"])
    aliases = dict((state.get(EXTRA_STATE) or {}).get("aliases", {}))
    for stack, sharing in recorded_sharing(state).items():
        aliases.update(layer_aliases(state, stack, sharing))
    state.pop(EXTRA_STATE, None)
    for name, owner in aliases.items():
        state[name] = state[owner]
    plain_args = {key: value for key, value in model_args.items() if not _SHARING_OPTION.fullmatch(key)}
    stock = arch.replace("transformer_sharing", "transformer")
    plain_args.update(arch=stock, _name=stock)
    cfg = {**_plain(checkpoint["cfg"]), "model": plain_args}
    cfg["common"] = {**cfg.get("common", {}), "user_dir": None}
    for part in ("criterion", "optimizer"):
        if str((cfg.get(part) or {}).get("_name", "")).startswith(FUSED):
            cfg[part] = {**cfg[part], "_name": cfg[part]["_name"].removeprefix(FUSED)}
    kept: dict[str, Any] = {
        key: checkpoint[key] for key in ("args", "optimizer_history", "task_state") if key in checkpoint
    }
    return {**kept, "cfg": cfg, "model": state, "extra_state": {}}


_SHARING_OPTION = re.compile(
    r"((encoder|decoder)_)?(sharing|unique_layers|layer_map|sharing_scope)|precision|fast|compile|"
    r"admin|depth_signal|position_per_depth|act|act_epsilon"
)


def _plain(value: Any) -> Any:
    """Turn Namespaces inside a configuration into dicts, which any loader reads."""
    if hasattr(value, "__dict__"):
        value = vars(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def model_arguments(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Give the arguments of the model in a checkpoint as a plain dict."""
    cfg = checkpoint.get("cfg")
    return _plain(cfg["model"] if cfg else checkpoint.get("args") or {})


def task_arguments(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Give the arguments of the task in a checkpoint as a plain dict."""
    cfg = checkpoint.get("cfg")
    return _plain(cfg["task"] if cfg else checkpoint.get("args") or {})


def describe_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Tell what a checkpoint holds.

    Returns:
        arch; sharing, layers, unique_layers and layer_map by stack; parameters {unique, effective} (numbers of values,
        effective as if every layer had its own); updates.

    Raises:
        SharingError: no such file, or not a checkpoint.
    """
    checkpoint = load_checkpoint(path)
    state, args = checkpoint["model"], model_arguments(checkpoint)
    sharing = recorded_sharing(state)
    for stack in STACKS:
        if stack not in sharing and (n := _count_layers(state, stack, {})):
            sharing[stack] = StackSharing(tuple(range(n)))
    # fairseq's version buffers are no parameters.
    sizes = {
        name: value.numel()
        for name, value in state.items()
        if torch.is_tensor(value) and not name.endswith(("version", "_float_tensor"))
    }
    borrowed = [sizes[owner] for stack, s in sharing.items() for owner in layer_aliases(state, stack, s).values()]
    history = checkpoint.get("optimizer_history") or [{}]
    strategies = {s: args.get(f"{s.split('.')[0]}_sharing") or args.get("sharing") or "none" for s in sharing}
    return {
        "arch": args.get("arch"),
        "sharing": strategies,
        "layers": {stack: len(s.layer_map) for stack, s in sharing.items()},
        "unique_layers": {stack: num_unique(s.layer_map) for stack, s in sharing.items()},
        "layer_map": {stack: list(s.layer_map) for stack, s in sharing.items()},
        "scope": {stack: list(s.scope) for stack, s in sharing.items()},
        "parameters": {"unique": sum(sizes.values()), "effective": sum(sizes.values()) + sum(borrowed)},
        "updates": history[-1].get("num_updates"),
    }


def newest_readable(directory: str | os.PathLike[str], suffix: str = "", optimizer_state: bool = True) -> Path | None:
    """Find the newest checkpoint in a folder that a training can resume from.

    Args:
        directory, suffix: fairseq's --save-dir and --checkpoint-suffix.
        optimizer_state: whether a file needs the optimizer's state.

    Returns:
        ``checkpoint_last.pt`` if it is complete, else the one with the most updates among the files with fairseq's
        names for epochs, intervals of updates and best models. None if there is none.
    """
    last = Path(directory, f"checkpoint_last{suffix}.pt")
    written = rf"checkpoint(\d+|_\d+_\d+|_best|\.best_.+){re.escape(suffix)}\.pt"
    others = [path for path in Path(directory).glob("checkpoint*.pt") if re.fullmatch(written, path.name)]
    complete: list[tuple[int, Path]] = []
    for path in [last, *sorted(others)]:
        try:
            checkpoint = load_checkpoint(path)
        except SharingError:
            continue
        if not missing_parts(checkpoint, optimizer_state):
            if path == last:
                return last
            complete.append((checkpoint["optimizer_history"][-1]["num_updates"], path))
    return max(complete)[1] if complete else None


def missing_parts(checkpoint: Mapping[str, Any], optimizer_state: bool = True) -> list[str]:
    """List what a training needs to resume and a checkpoint does not have; the optimizer's state if asked for."""
    history, extra = checkpoint.get("optimizer_history") or [{}], checkpoint.get("extra_state")
    found = {
        "last_optimizer_state": not optimizer_state or checkpoint.get("last_optimizer_state") is not None,
        "optimizer_history": "num_updates" in history[-1],
        "extra_state": isinstance(extra, Mapping) and "train_iterator" in extra,
    }
    return [part for part, there in found.items() if not there]


def epoch_checkpoints(directory: str | os.PathLike[str]) -> list[Path]:
    """List the checkpoints to average in a folder, oldest first.

    Those of whole epochs (``checkpointN.pt``); where no epoch has ended yet, those that --save-interval-updates wrote
    (``checkpoint_N_UPDATES.pt``).
    """
    for pattern in (r"checkpoint(\d+)\.pt", r"checkpoint_\d+_(\d+)\.pt"):
        numbered = {
            int(match[1]): path
            for path in Path(directory).glob("checkpoint*.pt")
            if (match := re.fullmatch(pattern, path.name))
        }
        if numbered:
            return [numbered[number] for number in sorted(numbered)]
    return []


def last_epochs(directory: str | os.PathLike[str], count: int) -> list[Path]:
    """List the checkpoints of the last ``count`` epochs in a folder, oldest first.

    Raises:
        SharingError: fewer of them, or a count below 1.
    """
    files = epoch_checkpoints(directory)
    if not 1 <= count <= len(files):
        raise SharingError(f"{directory}: has {len(files)} epoch checkpoints, got {count} to average")
    return files[-count:]
