"""Maps of single components, within a stack or across both: ``--component-sharing`` and ``--cross-stack-sharing``.

Both flags take ``COMPONENT=STRATEGY`` pairs, separated by semicolons. Within a stack, a strategy assigns the sets of
its layers. Across stacks, it assigns those of the encoder's layers followed by the decoder's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import (
    PARTS,
    STACKS,
    STRATEGIES,
    ComponentMap,
    LayerMap,
    StackSharing,
    make_layer_map,
    relabel,
    resolve_stack,
)
from fairseq_sharing.options import flag_of
from fairseq_sharing.parameter_sets import ATTENTION

COMPONENT_OPTIONS = ("component_sharing", "encoder_component_sharing", "decoder_component_sharing")
CROSS_STACK_OPTION = "cross_stack_sharing"
# Layers of equal depth in both stacks use the same set.
BY_DEPTH = "by_depth"
# What sets across stacks can contain: the components that they tie in each stack.
SPANS: Mapping[str, tuple[tuple[str, str], ...]] = {
    **{part: (("encoder", part), ("decoder", part)) for part in PARTS["encoder"]},
    ATTENTION: (("encoder", "self_attn"), ("decoder", "self_attn"), ("decoder", "encoder_attn")),
}


def resolve_sharing(options: Mapping[str, Any], layers: Mapping[str, int]) -> dict[str, StackSharing]:
    """Resolve the sharing options of a model.

    Args:
        options: those of ``resolve_stack``, ``COMPONENT_OPTIONS`` and ``CROSS_STACK_OPTION``; a missing option equals
            None.
        layers: the number of layers of each stack of the model.

    Raises:
        SharingError: the options define no valid map, or two maps for one component.
    """
    sharing = {}
    across = _across_stacks(options.get(CROSS_STACK_OPTION), layers)
    for stack, num_layers in layers.items():
        whole = resolve_stack(options, stack, num_layers)
        own = _within_stack(options, stack, num_layers)
        spanning = across.get(stack, {})
        if both := own.keys() & spanning.keys():
            raise SharingError(
                f"{flag_of(CROSS_STACK_OPTION)} {options[CROSS_STACK_OPTION]}: {min(both)} of the {stack} also has a "
                f"map in {flag_of(COMPONENT_OPTIONS[0])}; allowed: one map per component"
            )
        if own or spanning:
            rest = {part: _covered(whole, part) for part in PARTS[stack]}
            sharing[stack] = StackSharing.of({**rest, **own, **spanning}.values())
        else:
            sharing[stack] = whole
    return sharing


def _covered(whole: StackSharing, part: str) -> ComponentMap:
    """Return the map of a component that has no map of its own."""
    labels = whole.layer_map if whole.of_component(part) else tuple(range(len(whole.layer_map)))
    return ComponentMap(part, labels)


def _within_stack(options: Mapping[str, Any], stack: str, num_layers: int) -> dict[str, ComponentMap]:
    """Read the maps of components of one stack; those given for the stack override those of both."""
    maps = {}
    for name in (COMPONENT_OPTIONS[0], f"{stack}_{COMPONENT_OPTIONS[0]}"):
        allowed = PARTS[stack] if name.startswith(stack) else PARTS["decoder"]
        for component, text in _pairs(options.get(name), name, allowed).items():
            if component in PARTS[stack]:
                labels = _labels(text, num_layers, f"{flag_of(name)} {component}={text}", f"{stack} layers")
                maps[component] = ComponentMap(component, labels)
    return maps


def _across_stacks(given: Any, layers: Mapping[str, int]) -> dict[str, dict[str, ComponentMap]]:
    """Read the maps of components across both stacks, by stack and component."""
    pairs = _pairs(given, CROSS_STACK_OPTION, tuple(SPANS))
    if pairs and set(layers) != set(STACKS):
        raise SharingError(
            f"{flag_of(CROSS_STACK_OPTION)} {given}: the model has only one stack; allowed: leave it out"
        )
    if ATTENTION in pairs and "self_attn" in pairs:
        raise SharingError(
            f"{flag_of(CROSS_STACK_OPTION)} {given}: {ATTENTION} includes self_attn; allowed: one map per component"
        )
    maps: dict[str, dict[str, ComponentMap]] = {stack: {} for stack in layers}
    for space, text in pairs.items():
        sizes = [layers[stack] for stack, _ in SPANS[space]]
        if text == BY_DEPTH:
            labels = relabel(depth for size in sizes for depth in range(size))
        else:
            labels = _labels(
                text, sum(sizes), f"{flag_of(CROSS_STACK_OPTION)} {space}={text}", f"layers of {space}", f"{BY_DEPTH}, "
            )
        rest = iter(labels)
        blocks = [tuple(islice(rest, size)) for size in sizes]
        spans = sum(len(set(block)) for block in blocks) > len(set(labels))
        for (stack, component), block in zip(SPANS[space], blocks, strict=True):
            own = ComponentMap(component, block, space) if spans else ComponentMap(component, relabel(block))
            maps[stack][component] = own
    return maps


def _pairs(given: Any, name: str, allowed: Sequence[str]) -> dict[str, str]:
    """Split ``ffn=universal;self_attn=cycle:2`` into its pairs."""
    pairs: dict[str, str] = {}
    for pair in str(given).split(";") if given is not None else ():
        component, equals, text = (part.strip() for part in pair.partition("="))
        if component not in allowed or not equals or component in pairs:
            raise SharingError(
                f"{flag_of(name)} {given}: {pair.strip()!r}; allowed: COMPONENT=STRATEGY, separated by semicolons, "
                f"with each component of {', '.join(allowed)} at most once"
            )
        pairs[component] = text
    return pairs


def _labels(text: str, num_layers: int, given: str, counted: str, more: str = "") -> LayerMap:
    """Read a strategy, such as ``universal``, ``cycle:3`` or ``0,1,1,0``.

    Raises:
        SharingError: the text is not a strategy, or does not fit the number of layers.
    """
    name, colon, number = text.partition(":")
    strategy = STRATEGIES.get(name)
    if strategy is None:
        if name.count(",") + 1 == num_layers and "" not in map(str.strip, name.split(",")) and not colon:
            return make_layer_map("custom", num_layers, custom=name)
    elif strategy.fixed_unique_layers is not None:
        if not colon and (name != "sandwich" or num_layers >= 3):
            return make_layer_map(name, num_layers)
    elif number.isascii() and number.isdigit() and 1 <= int(number) <= num_layers:
        return make_layer_map(name, num_layers, int(number))
    free = [name for name, strategy in STRATEGIES.items() if strategy.fixed_unique_layers is None]
    fixed = [name for name in STRATEGIES if name not in free]
    raise SharingError(
        f"{given}: not a strategy for {num_layers} {counted}; "
        f"allowed: {more}{', '.join(fixed)} (sandwich from 3 layers), "
        f"{', '.join(f'{name}:M' for name in free)} with M from 1 to {num_layers}, "
        f"or {num_layers} labels such as 0,1,1,0"
    )
