"""Count what a model has: parameters, multiply-accumulate operations and the memory of training.

Models are built without storage, so the largest one takes no memory.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from fairseq.data import Dictionary
from torch.utils.flop_counter import FlopCounterMode

from fairseq_sharing.description.step_memory import OPTIMIZER_STATES, MemoryEstimate, estimate_both, stand_in_task
from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import LayerMap, num_unique
from fairseq_sharing.preparation.manifest import read_manifest
from fairseq_sharing.tying import part_of

COMPONENTS = ("embeddings", "self_attn", "encoder_attn", "ffn", "layer_norm", "depth_steps", "output", "other")
BYTES = 4  # a value in fp32; --precision bf16 keeps weights, gradients and optimizer in fp32 too


@dataclass(frozen=True)
class Description:
    """One model.

    Args:
        name: what it is called beside the others.
        layer_map: of each stack.
        depth_steps: of each stack, what a Universal Transformer adds to it, in words; empty for nothing.
        unique: parameters by component, each shared one once.
        effective: the same, as if every layer had its own.
        bytes: weights, gradients and optimizer state in training, in bytes; None for an unknown optimizer.
        macs: multiply-accumulate operations of one forward pass over one sentence pair.
        banks: of a model with expert banks: name, experts, active (of them, for a token) and parameters of each.
        active: parameters that one token uses when a layer chooses its experts once; None without banks.
        memory: of training, with activations ``stored`` and ``recomputed``; None where nobody can tell.
    """

    name: str
    layer_map: dict[str, LayerMap]
    depth_steps: dict[str, str]
    unique: dict[str, int]
    effective: dict[str, int]
    bytes: dict[str, int | None]
    macs: int
    banks: list[dict] = field(default_factory=list)
    active: int | None = None
    memory: dict[str, MemoryEstimate | None] = field(default_factory=dict)


def compare(
    name: str, args: Namespace, vocabulary: int, length: int, *, memory: float | None = None, device: str = "cuda"
) -> list[Description]:
    """Describe a model beside the vanilla models of N and of M layers.

    Args:
        name: the experiment's name.
        args: its arguments.
        vocabulary: symbols of the joined dictionary, the four special ones included.
        length: source and target tokens of the counted sentence pair.
        memory: of the device, in bytes; None to leave out the memory of training, which takes longer to count.
        device: ``cuda`` or ``cpu``.

    Returns:
        The model; vanilla (with expert banks: unshared) with N layers; the same with M layers a stack, where M < N.
    """

    def described_as(title: str, args: Namespace) -> Description:
        described = measure(title, args, vocabulary, length)
        if memory is None:
            return described
        return replace(described, memory=estimate_both(args, vocabulary, length, memory, device))

    model = described_as(name, args)
    depth = {stack: len(layer_map) for stack, layer_map in model.layer_map.items()}
    sets = {stack: num_unique(layer_map) for stack, layer_map in model.layer_map.items()}
    described = [model]
    plain_name = "unshared" if model.banks else "vanilla"
    for title, layers in ((f"{plain_name}, N layers", depth), (f"{plain_name}, M layers", sets)):
        if layers != depth or sets != depth:
            plain = Namespace(
                **{k: v for k, v in vars(args).items() if "sharing" not in k and "unique_layers" not in k}
            )
            plain.depth_signal, plain.position_per_depth, plain.act = "off", False, "off"
            for stack, count in layers.items():
                setattr(plain, f"{stack}_layers", count)
                setattr(plain, f"{stack}_layer_map", None)
            plain.layer_map, plain.sharing = None, "none"
            described.append(described_as(title, plain))
    return described


def build_without_storage(args: Namespace, vocabulary: int) -> Any:
    """Build a model on torch's meta device: sizes only, no values."""
    from fairseq.models import ARCH_MODEL_REGISTRY

    with torch.device("meta"):
        model = ARCH_MODEL_REGISTRY[args.arch].build_model(Namespace(**vars(args)), stand_in_task(vocabulary))
    return model.to("meta")  # buffers that fairseq makes by old constructors lie elsewhere


def measure(name: str, args: Namespace, vocabulary: int, length: int) -> Description:
    """Build a model without storage and count what is in it."""
    model = build_without_storage(args, vocabulary)
    unique = _count(model, once=True)
    values = sum(unique.values())
    banks = model.expert_banks() if hasattr(model, "expert_banks") else []
    states = OPTIMIZER_STATES.get(str(getattr(args, "optimizer", None)))
    return Description(
        name=name,
        layer_map={stack: sharing.layer_map for stack, sharing in model.sharing.items()},
        depth_steps={stack: getattr(model, stack).describe_depth_steps() for stack in model.sharing},
        unique=unique,
        effective=_count(model, once=False),
        bytes={
            "weights": BYTES * values,
            "gradients": BYTES * values,
            "optimizer": None if states is None else BYTES * values * states,
        },
        macs=count_macs(model, length),
        banks=banks,
        active=model.active_parameters() if banks else None,
    )


def run_without_storage(model: Any, length: int, sentences: int) -> torch.Tensor:
    """Run the layers of both stacks and the output projection of a model on the meta device.

    Not the stacks' own forward passes: they look at token values, which models without storage have none of.

    Args:
        model: what ``build_without_storage`` gave; a language model has the target side only.
        length: source and target tokens of a sentence.
        sentences: how many.

    Returns:
        The output, (sentences, length, vocabulary); log-probabilities of an adaptive softmax.
    """
    encoder, decoder = getattr(model, "encoder", None), model.decoder
    with torch.device("meta"):
        memory = None
        x = torch.zeros(length, sentences, model.cfg.decoder.embed_dim)  # T x B x C
        if encoder is not None:
            memory = torch.zeros(length, sentences, model.cfg.encoder.embed_dim)
            for layer in encoder.layers:
                memory = layer(memory, encoder_padding_mask=None)
        for layer in decoder.layers:
            x = layer(x, memory, None, self_attn_mask=torch.zeros(length, length))[0]
        x = x.transpose(0, 1)
        if decoder.adaptive_softmax is not None:
            return decoder.adaptive_softmax.get_log_prob(x, None)
        return decoder.output_layer(x)


def count_macs(model: Any, length: int) -> int:
    """Count the multiply-accumulate operations of one forward pass over one sentence pair.

    Matrix products only: the layers of both stacks and the output projection (all of an adaptive softmax).

    Args:
        model: a model built on the meta device; a language model has the target side only.
        length: source and target tokens.
    """
    if hasattr(model, "count_macs"):  # what a token uses of expert banks is known to the model only
        return model.count_macs(length)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run_without_storage(model, length, 1)
    # The counter counts a multiplication and an addition as two.
    return counter.get_total_flops() // 2


def _count(model: Any, once: bool) -> dict[str, int]:
    """Count parameters by component; embeddings once in either case."""
    counts = dict.fromkeys(COMPONENTS, 0)
    seen = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        in_layer = ".layers." in name
        if parameter in seen and (once or not in_layer):
            continue
        seen.add(parameter)
        if in_layer:
            component = part_of(name.split(".layers.")[1].split(".", 1)[1]) or "other"
        elif "layer_norm" in name or "layernorm" in name:
            component = "layer_norm"
        elif "embed" in name:
            component = "embeddings"
        elif "depth_signal" in name or "halting" in name:
            component = "depth_steps"
        else:
            component = "output"
        counts[component] += parameter.numel()
    return counts


def vocabulary_size(data: Path) -> int:
    """Return the number of symbols of a prepared data directory's dictionary.

    Raises:
        SharingError: there is none, or preparation of the data has not finished.
    """
    read_manifest(data)
    dictionaries = sorted((data / "bin").glob("dict.*.txt"))
    if not dictionaries:
        raise SharingError(f"{data}: no dictionary there; prepare the data, or give --data DIR or --vocabulary SIZE")
    return len(Dictionary.load(str(dictionaries[0])))
