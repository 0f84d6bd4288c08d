"""Tie a trained checkpoint: write a checkpoint from which a model with shared layers can start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fairseq_sharing.adapters.effective import ATTRIBUTE, merge_state
from fairseq_sharing.adapters.fit_layers import fit_layers
from fairseq_sharing.adapters.kinds import DEPTH_OPTIONS, DepthKinds
from fairseq_sharing.checkpoints.align import Layer, align_layer
from fairseq_sharing.checkpoints.arguments import model_arguments, with_model_arguments
from fairseq_sharing.checkpoints.finite_weights import refuse_nonfinite_weights
from fairseq_sharing.checkpoints.initial_values import INITS, source_layers
from fairseq_sharing.checkpoints.recorded_state import EXTRA_STATE, recorded_extra, recorded_sharing
from fairseq_sharing.checkpoints.sharing_state import count_layers, find_aliases, layer_aliases
from fairseq_sharing.checkpoints.stock_model import model_on_meta, refuse_unfit_tensor
from fairseq_sharing.component_sharing import CROSS_STACK_OPTION
from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import STACKS, StackSharing
from fairseq_sharing.options import flag_of
from fairseq_sharing.parameter_sets import full_name, names_by_layer, part_of
from fairseq_sharing.tying import alias_names, shared_names

MAX_FIT_ITERATIONS = 1000
_OPTIONS = ("sharing", "unique_layers", "layer_map", "sharing_scope", "component_sharing")
# The sharing options of both stacks and of each of them.
SHARING_OPTIONS = tuple(prefix + name for prefix in ("", "encoder_", "decoder_") for name in _OPTIONS)
# Model of fairseq -> the model of this package that extends it.
_SHARED_MODELS = {
    "transformer": "transformer_sharing",
    "transformer_lm": "transformer_lm_sharing",
    "roberta": "roberta_sharing",
}
# Regularization of independent layers, which shared layers do not support; it does not change the trained model.
_WITHOUT: dict[str, Any] = {
    **dict.fromkeys(("encoder_layerdrop", "decoder_layerdrop", "quant_noise_pq", "quant_noise_scalar"), 0),
    "store_ema": False,
    # A new training chooses its own depths.
    **dict.fromkeys(("depths", "encoder_depths", "decoder_depths", "depth_full_share")),
    "depth_loss": "sampled",
    "depth_sampling": "uniform",
}


def tie(
    checkpoint: Mapping[str, Any],
    options: Mapping[str, Any],
    init: str | None = None,
    align: bool = False,
    fit_iterations: int = 0,
) -> dict[str, Any]:
    """Make the checkpoint of a model with shared layers from a trained one.

    Args:
        checkpoint: result of ``load_checkpoint`` for a model of fairseq or of this package, with any layer map.
        options: ``SHARING_OPTIONS``, ``DEPTH_OPTIONS``, and ``encoder_layers`` and ``decoder_layers`` to change the
            depth; a missing option equals None.
        init: the rule that fills the parameter sets, one of ``INITS``; by default ``average`` with adapters and
            ``stepwise`` without.
        align: reorder the units and heads of the layers of a set before averaging them.
        fit_iterations: number of alternations between the shared matrices and the adapters.

    Returns:
        A checkpoint without optimizer state and with 0 updates.

    Raises:
        SharingError: the options give no layer map or do not apply to the model, the model is not supported, its
            weights are NaN or infinite or do not match its arguments, or a set cannot be filled.
    """
    init = init or ("average" if options.get("depth_lora") else "stepwise")
    if fit_iterations and not options.get("depth_lora"):
        raise SharingError(
            f"--fit-iterations {fit_iterations}: there are no adapters to fit; allowed: with --depth-lora"
        )
    if init not in INITS:
        raise SharingError(f"--init {init}: allowed: {', '.join(INITS)}")
    if options.get("depth_lora_of") is not None and not options.get("depth_lora"):
        raise SharingError(
            f"--depth-lora-of {options['depth_lora_of']}: there are no adapters; allowed: with --depth-lora"
        )
    if not 0 <= fit_iterations <= MAX_FIT_ITERATIONS:
        raise SharingError(f"--fit-iterations {fit_iterations}: allowed: 0 to {MAX_FIT_ITERATIONS:,}")
    if align and init != "average":
        raise SharingError(f"--align with --init {init}: nothing is averaged; allowed: --init average")
    strategies = [name for name in SHARING_OPTIONS if name.endswith("sharing")]
    if not any(options.get(name) for name in strategies):
        raise SharingError(
            "--sharing: missing; give it for both stacks, or --encoder-sharing or --decoder-sharing, "
            "or --component-sharing"
        )
    state = dict(checkpoint["model"])
    refuse_nonfinite_weights(state)
    arguments = _tied_arguments(model_arguments(checkpoint), options)
    model = model_on_meta({**arguments, "fast": False, "compile": False}, state)
    _refuse_other_stacks(options, model.sharing)
    tied = {
        **checkpoint,
        "model": _tied_state(state, model, init, align, fit_iterations),
        # A new training starts at the first epoch, and fairseq reads this entry in every case.
        "extra_state": {"train_iterator": {"version": 2, "epoch": 1, "iterations_in_epoch": 0, "shuffle": True}},
        "optimizer_history": [{**_names(checkpoint), "lr_scheduler_state": {}, "num_updates": 0}],
    }
    for name in ("last_optimizer_state", "task_state", "averaged", "args"):
        tied.pop(name, None)
    return with_model_arguments(tied, arguments)


def _names(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the names of criterion and optimizer, without which fairseq takes the file for an old one."""
    last = (checkpoint.get("optimizer_history") or [{}])[-1]
    return {name: last.get(name, "unknown") for name in ("criterion_name", "optimizer_name")}


def _tied_arguments(arguments: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's arguments with another sharing."""
    given = arguments.get("arch") or arguments.get("_name")
    arch = _shared_arch(str(given))
    depths = {name: options[name] for name in ("encoder_layers", "decoder_layers") if options.get(name) is not None}
    sharing = {name: options.get(name) for name in (*SHARING_OPTIONS, *DEPTH_OPTIONS)}
    without = {name: value for name, value in _WITHOUT.items() if name in arguments}
    # Each stack is filled from its own layers.
    across = {CROSS_STACK_OPTION: None} if CROSS_STACK_OPTION in arguments else {}
    return {**arguments, **without, **sharing, **across, **depths, "arch": arch, "_name": arch}


def _shared_arch(arch: str) -> str:
    """Return the architecture with shared layers for an architecture of fairseq or of this package."""
    from fairseq.models import ARCH_MODEL_NAME_REGISTRY, ARCH_MODEL_REGISTRY

    model = ARCH_MODEL_REGISTRY.get(arch)
    if model is not None and model.__module__.startswith("fairseq_sharing."):
        return arch
    shared = _SHARED_MODELS.get(ARCH_MODEL_NAME_REGISTRY.get(arch, ""))
    if shared is None:
        raise SharingError(
            f"tie does not support the checkpoint's --arch {arch}; allowed: architectures of fairseq's "
            f"{', '.join(_SHARED_MODELS)}, and those of this package"
        )
    # The arguments contain the sizes, so that the architecture's defaults do not matter.
    own = arch.replace(shared.removesuffix("_sharing"), shared, 1)
    return own if own in ARCH_MODEL_REGISTRY else shared


def _refuse_other_stacks(options: Mapping[str, Any], stacks: Iterable[str]) -> None:
    """Reject options of a stack that the model does not have."""
    has = [stack.split(".")[0] for stack in stacks]
    for name in (*SHARING_OPTIONS, "encoder_layers", "decoder_layers"):
        stack = name.split("_")[0]
        if options.get(name) is not None and stack in STACKS and stack not in has:
            raise SharingError(f"{flag_of(name)} {options[name]}: the model has no {stack}; allowed: {', '.join(has)}")


def _tied_state(state: Mapping[str, Any], model: Any, init: str, align: bool, iterations: int) -> dict[str, Any]:
    """Return the state dict of a shared model, filled from the trained one."""
    recorded, values = recorded_sharing(state), _without_layers(state, model)
    for stack, sharing in model.sharing.items():
        layers = _effective_layers(state, stack, recorded)
        module = model.get_submodule(stack)
        chosen = {
            c.component: source_layers(init, c.labels, len(layers))
            for c in sharing.maps
            if c.component in sharing.scope
        }
        if align:
            for component, sources in chosen.items():
                layers = _align(layers, sources, module.layers[0], (component,))
        values |= _fill(stack, sharing, layers, chosen, module)
        values |= fit_layers(stack, sharing, DepthKinds.read(model.cfg), layers, values, iterations)
    tied = model.state_dict()
    for name, wanted in tied.items():
        if name == EXTRA_STATE:
            continue
        refuse_unfit_tensor(name, values.get(name), wanted)
        tied[name] = values[name]
    tied[EXTRA_STATE].pop("admin_pending", None)
    if recorded_extra(state).get("admin_pending"):
        tied[EXTRA_STATE]["admin_pending"] = True
    return tied


def _without_layers(state: Mapping[str, Any], model: Any) -> dict[str, Tensor]:
    """Return the tensors outside of layers, each shared tensor once.

    Raises:
        SharingError: the model has no such tensor, or shares tensors that differ.
    """
    stacks = tuple(f"{stack}.layers." for stack in model.sharing)
    values = {name: value for name, value in state.items() if name != EXTRA_STATE and not name.startswith(stacks)}
    aliases, known = find_aliases(model), model.state_dict()
    for name in list(values):
        owner = aliases.get(name)
        if owner is None and name not in known:
            raise SharingError(f"the checkpoint's tensor {name} is not in the model that its arguments describe")
        if owner is not None:
            if owner in values and not torch.equal(values[owner], values[name]):
                raise SharingError(f"the checkpoint has different weights for {owner} and {name}, which are shared")
            values.setdefault(owner, values.pop(name))
    return values


def _effective_layers(state: Mapping[str, Any], stack: str, recorded: Mapping[str, StackSharing]) -> list[Layer]:
    """Return the tensors of each layer of a saved stack, including those that it borrows, with adapters merged."""
    aliases = layer_aliases(state, recorded)
    every = {**state, **{name: state[owner] for name, owner in aliases.items()}}
    used = merge_state({name: value for name, value in every.items() if name.startswith(f"{stack}.layers.")})
    layers: list[dict[str, Tensor]] = [{} for _ in range(count_layers(state, stack, recorded))]
    for depth, leaves in names_by_layer(used, stack).items():
        layers[depth] = {leaf: used[full_name(stack, depth, leaf)] for leaf in leaves}
    if not layers:
        raise SharingError(f"the checkpoint has no layers {stack}.layers.*, which the model's arguments require")
    return list(layers)


def _align(layers: list[Layer], chosen: list[list[int]], module: Any, scope: tuple[str, ...]) -> list[Layer]:
    """Align the layers of each set with the first of them."""
    heads = {name: child.num_heads for name, child in module.named_children() if hasattr(child, "num_heads")}
    aligned = list(layers)
    for first, *others in chosen:
        for layer in others:
            aligned[layer] = align_layer(layers[layer], layers[first], heads, scope)
    return aligned


def _fill(
    stack: str, sharing: StackSharing, layers: list[Layer], chosen: Mapping[str, list[list[int]]], module: Any
) -> dict[str, Tensor]:
    """Give each parameter set its initial values, and every depth what it does not share."""
    filled = {}
    borrowed = alias_names(module, sharing)
    for depth, layer in enumerate(module.layers):
        tied = set(shared_names(layer, sharing.scope))
        for leaf in layer.state_dict():
            if f"layers.{depth}.{leaf}" in borrowed or leaf.split(".")[0] == ATTRIBUTE:
                continue
            name = f"{stack}.layers.{depth}.{leaf}"
            component = sharing.of_component(part_of(leaf)) if leaf in tied else None
            sources = chosen[component.component][component.labels[depth]] if component else [depth]
            if max(sources) >= len(layers):
                raise SharingError(
                    f"{name} belongs to the depth, but the checkpoint's {stack} has {len(layers)} layers; "
                    f"allowed: at most {len(layers)} layers"
                )
            if all(leaf in layers[source] for source in sources):
                filled[name] = _mean([layers[source][leaf] for source in sources])
    return filled


def _mean(tensors: list[Tensor]) -> Tensor:
    """Return the mean in the tensors' own type, computed in double precision."""
    if len(tensors) == 1:
        return tensors[0]
    if any(tensor.shape != tensors[0].shape for tensor in tensors):
        raise SharingError(f"the checkpoint's layers have different shapes: {[list(t.shape) for t in tensors]}")
    return torch.stack([tensor.double() for tensor in tensors]).mean(0).to(tensors[0].dtype)
