"""Count the parameters, multiply-accumulate operations (MACs) and training memory of a model.

Models are built without storage, so even the largest one uses no memory.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.modules import AdaptiveInput
from torch.utils.flop_counter import FlopCounterMode

from fairseq_sharing.adapters.effective import is_adapter
from fairseq_sharing.adapters.kinds import DepthKinds
from fairseq_sharing.depths.options import DEFAULTS
from fairseq_sharing.description.map_rows import MapRow, map_rows
from fairseq_sharing.description.sizes_only import without_compiler
from fairseq_sharing.description.step_memory import OPTIMIZER_STATES, MemoryEstimate, dummy_task, estimate_both
from fairseq_sharing.errors import SharingError
from fairseq_sharing.factorized_embedding.embedding import FactorizedEmbedding
from fairseq_sharing.layer_map import LayerMap, num_unique
from fairseq_sharing.models.structure_checks import STRUCTURES
from fairseq_sharing.parameter_sets import part_of
from fairseq_sharing.preparation.manifest import read_manifest
from fairseq_sharing.tying import depth_names

COMPONENTS = ("embeddings", "self_attn", "encoder_attn", "ffn", "layer_norm", "depth", "depth_steps", "output", "other")
BYTES = 4  # per fp32 value; --precision bf16 also keeps weights, gradients and optimizer state in fp32


@dataclass(frozen=True)
class Description:
    """The counts of one model.

    Args:
        name: its name in the comparison.
        layer_map: the layer map of each stack.
        depth_steps: for each stack, what a Universal Transformer adds to it, in words; empty if nothing.
        depth_kinds: the depth parameters, one line per kind.
        unique: parameters by component, with shared parameters counted once.
        effective: parameters by component, as if no layers shared parameters.
        bytes: weights, gradients and optimizer state in training, in bytes; None for an unknown optimizer.
        macs: MACs of one forward pass over one sentence pair.
        maps: what to draw: the layer map of each stack, or the maps of its components.
        banks: for each expert bank its name, number of experts, active experts per token and parameters.
        active: parameters used per token if each layer routes once; None without expert banks.
        memory: training memory with activations ``stored`` and ``recomputed``; None if it cannot be estimated.
    """

    name: str
    layer_map: dict[str, LayerMap]
    depth_steps: dict[str, str]
    unique: dict[str, int]
    effective: dict[str, int]
    bytes: dict[str, int | None]
    macs: int
    maps: list[MapRow] = field(default_factory=list)
    banks: list[dict] = field(default_factory=list)
    active: int | None = None
    depth_kinds: list[str] = field(default_factory=list)
    memory: dict[str, MemoryEstimate | None] = field(default_factory=dict)


def compare(
    name: str, args: Namespace, vocabulary: int, length: int, *, memory: float | None = None, device: str = "cuda"
) -> list[Description]:
    """Describe a model and, for comparison, vanilla models with N and M layers.

    Args:
        name: the name of the experiment.
        args: its fairseq arguments.
        vocabulary: size of the joined dictionary, including the four special symbols.
        length: source and target tokens of the sentence pair.
        memory: device memory in bytes; None to skip the estimate of training memory, which takes longer.
        device: ``cuda`` or ``cpu``.

    Returns:
        The model; the vanilla model (with expert banks or structures: the unshared model) with N layers; and the same
        with M layers per stack, if M < N.
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
    changed = model.banks or any(getattr(args, option, None) for option in STRUCTURES)
    plain_name = "unshared" if changed else "vanilla"
    shares = model.unique != model.effective  # also if no two layers share all of their components
    for title, layers, show in (
        (f"{plain_name}, N layers", depth, shares or sets != depth),
        (f"{plain_name}, M layers", sets, sets != depth),
    ):
        if show:
            plain = Namespace(
                **{k: v for k, v in vars(args).items() if "sharing" not in k and "unique_layers" not in k}
            )
            plain.depth_signal, plain.position_per_depth, plain.act = "off", False, "off"
            vars(plain).update(DEFAULTS)
            plain.depth_lora, plain.depth_scale, plain.depth_bias, plain.depth_norm = None, False, False, False
            for stack, count in layers.items():
                setattr(plain, f"{stack}_layers", count)
                setattr(plain, f"{stack}_layer_map", None)
            plain.layer_map, plain.sharing = None, "none"
            described.append(described_as(title, plain))
    return described


def build_without_storage(args: Namespace, vocabulary: int) -> Any:
    """Build a model on torch's meta device, which stores shapes but no values."""
    from fairseq.models import ARCH_MODEL_REGISTRY

    with torch.device("meta"), without_compiler():
        model = ARCH_MODEL_REGISTRY[args.arch].build_model(Namespace(**vars(args)), dummy_task(vocabulary))
    return model.to("meta")  # fairseq creates some buffers with legacy constructors, which ignore torch.device


def measure(name: str, args: Namespace, vocabulary: int, length: int) -> Description:
    """Build a model without storage and count its parameters, bytes and MACs."""
    model = build_without_storage(args, vocabulary)
    unique = count_parameters(model)
    values = sum(unique.values())
    banks = model.expert_banks() if hasattr(model, "expert_banks") else []
    states = OPTIMIZER_STATES.get(str(getattr(args, "optimizer", None)))
    return Description(
        name=name,
        layer_map={stack: sharing.layer_map for stack, sharing in model.sharing.items()},
        depth_steps={stack: getattr(model, stack).describe_depth_steps() for stack in model.sharing},
        unique=unique,
        effective=count_parameters(model, once=False),
        bytes={
            "weights": BYTES * values,
            "gradients": BYTES * values,
            "optimizer": None if states is None else BYTES * values * states,
        },
        macs=count_macs(model, length),
        maps=map_rows(model),
        banks=banks,
        active=model.active_parameters() if banks else None,
        depth_kinds=_depth_kinds(model),
    )


def _run_without_storage(model: Any, length: int) -> None:
    """Run the layers of both stacks and the output projection on one sentence pair of a model without storage.

    The forward passes of the stacks are not used, because they read token values, which do not exist without storage.
    """
    encoder, decoder = getattr(model, "encoder", None), model.decoder
    memory = None if encoder is None else encode_without_storage(model, length)
    with torch.device("meta"):
        x = _input(decoder, model.cfg.decoder.embed_dim, length)
        for layer in decoder.layers:
            x = layer(x, memory, None, self_attn_mask=torch.zeros(length, length))[0]
        x = x.transpose(0, 1)
        if decoder.project_out_dim is not None:
            x = decoder.project_out_dim(x)
        if decoder.adaptive_softmax is not None:
            decoder.adaptive_softmax.get_log_prob(x, None)
        else:
            decoder.output_layer(x)


def encode_without_storage(model: Any, length: int) -> torch.Tensor:
    """Run the layers of the encoder of a model from ``build_without_storage`` on one sentence."""
    with torch.device("meta"):
        x = _input(model.encoder, model.cfg.encoder.embed_dim, length)
        for layer in model.encoder.layers:
            x = layer(x, encoder_padding_mask=None)
    return x


def _input(stack: Any, width: int, length: int) -> torch.Tensor:
    """Project embeddings to the width of the layers: T x 1 x C."""
    projection = getattr(stack, "project_in_dim", None)
    if isinstance(stack.embed_tokens, AdaptiveInput):
        # Each token is in one band. The first is the widest and contains the most frequent words.
        _, projection = stack.embed_tokens.embeddings[0]
    if isinstance(stack.embed_tokens, FactorizedEmbedding):
        projection = stack.embed_tokens.projection
    if projection is None:
        return torch.zeros(length, 1, width)
    return projection(torch.zeros(length, 1, projection.in_features))


def count_macs(model: Any, length: int) -> int:
    """Count the MACs of one forward pass over one sentence pair.

    Only matrix products are counted: the layers of both stacks, the projections before and after the decoder (of an
    adaptive input, the first band for every token) and the output projection (every band of an adaptive softmax).

    Args:
        model: a model on the meta device; a language model has only the target side.
        length: source and target tokens.
    """
    if hasattr(model, "count_macs"):  # only the model can count the MACs of its expert banks per token
        return model.count_macs(length)
    with torch.no_grad(), without_compiler(), FlopCounterMode(display=False) as counter:
        _run_without_storage(model, length)
    # The counter counts a multiply-accumulate as two operations.
    return counter.get_total_flops() // 2


def _depth_kinds(model: Any) -> list[str]:
    """Describe each kind of depth parameters of each stack in one line."""
    kinds = DepthKinds.read(model.cfg)
    lines = []
    for stack in model.sharing if kinds else ():
        layer = model.get_submodule(stack).layers[0]
        names = list(depth_names(layer))
        lora = [name for name in names if name.startswith("depth.lora.")]
        norm = [name for name in names if kinds.norm and part_of(name) == "layer_norm"]
        chosen = {
            f"lora: rank {kinds.rank}, {len(lora) // 2} matrices": lora,
            "scale: {} vectors": [name for name in names if name.startswith("depth.scale.")],
            "norm: {} vectors": norm,
            "bias: {} vectors": [name for name in names if name.endswith(".bias") and name not in norm],
        }
        for title, some in chosen.items():
            if some:
                values = sum(layer.get_parameter(name).numel() for name in some)
                lines.append(f"{stack}  {title.format(len(some))}, {values:,} values per depth")
    return lines


def count_parameters(model: Any, once: bool = True) -> dict[str, int]:
    """Count the parameters of a model by component: shared ones once, or per layer except for tied embeddings."""
    counts = dict.fromkeys(COMPONENTS, 0)
    seen = set()
    own = {
        f"{stack}.layers.{depth}.{name}"
        for stack in model.sharing
        for depth, layer in enumerate(model.get_submodule(stack).layers)
        for name in depth_names(layer)
    }
    for name, parameter in model.named_parameters(remove_duplicate=False):
        in_layer = ".layers." in name
        if parameter in seen and (once or not in_layer):
            continue
        seen.add(parameter)
        if not once and is_adapter(name):  # it changes a matrix, which is counted
            continue
        if name in own:
            component = "depth"
        elif in_layer:
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


def composed_vocabulary(composed: Any, data: Path | None = None, vocabulary: int | None = None) -> int:
    """Return the dictionary size of a composed configuration.

    Args:
        composed: the configuration.
        data: a prepared data directory to use instead of that of the configuration.
        vocabulary: the size, if there is no data yet.

    Raises:
        SharingError: the size is unknown.
    """
    return vocabulary or vocabulary_size(data or Path(composed.get("data") or f"data/{composed.dataset}"))


def vocabulary_size(data: Path) -> int:
    """Return the dictionary size of a prepared data directory.

    Raises:
        SharingError: there is no dictionary, or the preparation of the data has not finished.
    """
    read_manifest(data)
    binarized = data / "bin"
    dictionaries = sorted([*binarized.glob("dict.*.txt"), *binarized.glob("dict.txt")])  # dict.txt: one language
    if not dictionaries:
        raise SharingError(f"{data}: contains no dictionary; prepare the data, or give --data DIR or --vocabulary SIZE")
    return len(Dictionary.load(str(dictionaries[0])))
