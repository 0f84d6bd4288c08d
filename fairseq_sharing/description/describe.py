"""What an experiment will train, told before it does: layer maps, parameters, memory and operations.

The models are built without storage, so the largest is described in no memory.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from xml.sax.saxutils import escape

import torch
from fairseq.data import Dictionary
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch.utils.flop_counter import FlopCounterMode

from fairseq_sharing import flags
from fairseq_sharing.colors import ink, set_colours
from fairseq_sharing.description.step_memory import (
    DEVICES,
    OPTIMIZER_STATES,
    MemoryEstimate,
    estimate_both,
    stand_in_task,
)
from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment import config as configuration
from fairseq_sharing.layer_map import LayerMap, num_unique
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


def describe(
    config: Path,
    overrides: Sequence[str] = (),
    *,
    data: Path | None = None,
    vocabulary: int | None = None,
    length: int = 25,
    memory: float = 80,
    device: str = "cuda",
    svg: Path | None = None,
    as_json: bool = False,
) -> None:
    """Print what an experiment trains, beside the vanilla models of N and of M layers.

    Args:
        config: an experiment file.
        overrides: OmegaConf dot-list changes to it.
        data: a prepared data directory, for the size of its dictionary.
        vocabulary: that size, where there is no data yet.
        length: source and target tokens of the sentence pair whose operations are counted, and of those of a batch.
        memory: of the device that the longest batch is to fit, in GB (10^9 bytes).
        device: ``cuda`` or ``cpu``.
        svg: where to draw the layer maps.
        as_json: print JSON instead of tables.

    Raises:
        SharingError: a bad option, or no way to know the size of the vocabulary.
    """
    if length < 1:
        raise SharingError(f"--length must be at least 1 token, got {length}")
    if memory <= 0:
        raise SharingError(f"--memory must be more than 0 GB, got {memory:g}")
    if device not in DEVICES:
        raise SharingError(f"--device must be one of {', '.join(DEVICES)}, got {device}")
    composed = configuration.compose(config, overrides, check=flags.check)
    args = model_arguments(composed.train)
    size = vocabulary or vocabulary_size(data or Path(composed.get("data") or f"data/{composed.dataset}"))
    with Console(stderr=True).status("counting parameters, operations and the memory of training"):
        models = compare(str(composed.run), args, size, length, memory=1e9 * memory, device=device)
    if svg is not None:
        svg.write_text(draw_maps(models[0].layer_map), encoding="utf-8")
    console = Console(highlight=False, soft_wrap=True)
    if as_json:
        told = {"vocabulary": size, "length": length, "memory": memory, "device": device}
        console.print_json(json.dumps({**told, "models": [asdict(model) for model in models]}))
        return
    for stack, layer_map in models[0].layer_map.items():
        console.print(_map_line(stack, layer_map))
        if models[0].depth_steps[stack]:
            console.print(f"{stack}  {models[0].depth_steps[stack]}")
    console.print(_table(models, size, length, f"{memory:g} GB"))
    if models[0].banks:
        console.print(_bank_table(models[0]))
    drawn = f"maps drawn in {svg}" if svg else "draw the maps with --svg FILE"
    console.print(f"{drawn}; train it with: fairseq-sharing train {config}")


def model_arguments(train: Mapping[str, object]) -> Namespace:
    """Turn a ``train`` block into fairseq's arguments, with the architecture and its checks applied.

    Raises:
        SharingError: an option that fairseq does not know, or that the model refuses.
    """
    return flags.parse(train)


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


def build_without_storage(args: Namespace, vocabulary: int) -> torch.nn.Module:
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


def run_without_storage(model: torch.nn.Module, length: int, sentences: int) -> torch.Tensor:
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


def count_macs(model: torch.nn.Module, length: int) -> int:
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


def _count(model: torch.nn.Module, once: bool) -> dict[str, int]:
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
        SharingError: there is none.
    """
    dictionaries = sorted((data / "bin").glob("dict.*.txt"))
    if not dictionaries:
        raise SharingError(f"{data}: no dictionary there; prepare the data, or give --data DIR or --vocabulary SIZE")
    return len(Dictionary.load(str(dictionaries[0])))


def _map_line(stack: str, layer_map: LayerMap) -> Text:
    line = Text(f"{stack}  N={len(layer_map)} M={num_unique(layer_map)}  ")
    colours = set_colours(num_unique(layer_map))
    for label in layer_map:
        line.append(f" {label} ", style=f"{ink(colours[label])} on {colours[label]}")
    return line


def _table(models: Sequence[Description], vocabulary: int, length: int, memory: str) -> Table:
    table = Table(title=f"{models[0].name}: vocabulary {vocabulary:,}, {length} + {length} tokens")
    table.add_column("")
    for model in models:
        table.add_column(model.name, justify="right")

    def add(title: str, values: Sequence[int | None], unit: str = "") -> None:
        table.add_row(title, *("-" if value is None else f"{value:,}{unit}" for value in values))

    for stack in models[0].layer_map:
        add(f"{stack} layers N", [len(m.layer_map[stack]) for m in models])
        add(f"{stack} sets M", [num_unique(m.layer_map[stack]) for m in models])
    table.add_section()
    add("unique parameters", [sum(m.unique.values()) for m in models])
    for component in COMPONENTS:
        if any(m.unique[component] for m in models):
            add(f"  {component}", [m.unique[component] for m in models])
    if models[0].banks:
        add("active parameters", [m.active for m in models])
    add("effective parameters", [sum(m.effective.values()) for m in models])
    for component in COMPONENTS:
        if any(m.effective[component] != m.unique[component] for m in models):
            add(f"  {component}", [m.effective[component] for m in models])
    table.add_section()
    for part in ("weights", "gradients", "optimizer"):
        add(f"bytes of {part}", [m.bytes[part] for m in models])
    for way in models[0].memory:
        told = [m.memory[way] for m in models]
        at = next((f" at {t.tokens:,} tokens" for t in told if t), "")
        table.add_section()
        add(f"activations a token, {way}", [t and t.activations_a_token for t in told])
        add(f"workspace{at}", [t and t.workspace for t in told])
        add(f"peak{at}", [t and t.peak for t in told])
        add(f"longest batch in {memory}", [t and t.longest_batch for t in told])
    table.add_section()
    add("MACs a sentence", [m.macs for m in models])
    add("MACs a token", [m.macs // length for m in models])
    return table


def _bank_table(model: Description) -> Table:
    table = Table(title="expert banks, each once however many layers share it")
    for column in ("bank", "experts", "active", "parameters"):
        table.add_column(column, justify="left" if column == "bank" else "right")
    for bank in model.banks:
        table.add_row(*(f"{bank[key]:,}" if key != "name" else bank[key] for key in bank))
    return table


def draw_maps(layer_maps: Mapping[str, LayerMap], cell: int = 44) -> str:
    """Draw layer maps as SVG: a row a stack, a cell a layer, a colour a parameter set.

    Args:
        layer_maps: by stack.
        cell: width of a cell, in pixels.

    Returns:
        The SVG document.
    """
    margin, header, row = 90, 34, cell + 34
    width = margin + cell * max((len(m) for m in layer_maps.values()), default=0) + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{header + row * len(layer_maps)}" '
        'font-family="sans-serif" font-size="14" text-anchor="middle">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for line, (stack, layer_map) in enumerate(layer_maps.items()):
        top = header + line * row
        colours = set_colours(num_unique(layer_map))
        parts.append(f'<text x="10" y="{top + cell / 2 + 5}" text-anchor="start">{escape(stack)}</text>')
        for layer, label in enumerate(layer_map):
            left = margin + layer * cell
            parts.append(
                f'<rect x="{left + 1}" y="{top}" width="{cell - 2}" height="{cell}" rx="4" fill="{colours[label]}"/>'
                f'<text x="{left + cell / 2}" y="{top + cell / 2 + 5}" fill="{ink(colours[label])}">{label}</text>'
                f'<text x="{left + cell / 2}" y="{top - 6}" font-size="11" fill="#555">{layer + 1}</text>'
            )
    return "\n".join([*parts, "</svg>\n"])
