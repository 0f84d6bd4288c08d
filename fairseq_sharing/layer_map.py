"""Layer maps: which parameter set each layer of a stack uses.

A layer map is a tuple of N labels, one per layer; layers with equal labels share one parameter set. Labels are
numbered from 0 in order of first use, and the owner of a set is the first layer that uses it. Pure Python, no torch.

To add a strategy, write a function ``(num_layers, num_unique_layers) -> labels`` and add it to ``STRATEGIES``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fairseq_sharing.errors import SharingError

LayerMap = tuple[int, ...]
STACKS = ("encoder", "decoder")
MAX_LAYERS = 10_000
# What a map ties: whole layers, or some of their parts.
SCOPES = ("layer", "self_attn", "encoder_attn", "ffn", "layer_norm")
# The parts of a layer in each stack.
PARTS = {"encoder": ("self_attn", "ffn", "layer_norm"), "decoder": SCOPES[1:]}


def sequence(num_layers: int, num_unique_layers: int) -> list[int]:
    """Share consecutive layers: 0 0 1 1 2 2.

    Source: Takase & Kiyono 2023, Section 3, Sequence.
    """
    return [i * num_unique_layers // num_layers for i in range(num_layers)]


def cycle(num_layers: int, num_unique_layers: int) -> list[int]:
    """Repeat the stack of unique layers: 0 1 2 0 1 2.

    Source: Takase & Kiyono 2023, Section 3, Cycle.
    """
    return [i % num_unique_layers for i in range(num_layers)]


def cycle_rev(num_layers: int, num_unique_layers: int) -> list[int]:
    """Repeat the stack of unique layers, with the last repetition reversed: 0 1 2 2 1 0.

    Source: Takase & Kiyono 2023, Section 3, Cycle (rev).
    """
    if num_layers == num_unique_layers:
        return list(range(num_layers))
    first_reversed = num_unique_layers * (-(-num_layers // num_unique_layers) - 1)
    return [
        i % num_unique_layers if i < first_reversed else num_unique_layers - 1 - i % num_unique_layers
        for i in range(num_layers)
    ]


def sandwich(num_layers: int, num_unique_layers: int) -> list[int]:
    """Share all layers except the first and the last: 0 1 1 1 1 2.

    Source: Reid, Marrese-Taylor & Matsuo 2021, Subformer, Section 3.1.
    """
    return [0, *[1] * (num_layers - 2), 2]


@dataclass(frozen=True)
class Strategy:
    """A named strategy.

    Args:
        assign: returns the labels for (num_layers, num_unique_layers).
        fixed_unique_layers: the only possible M, as a function of N; None if the user chooses M.
    """

    assign: Callable[[int, int], list[int]]
    fixed_unique_layers: Callable[[int], int] | None = None


STRATEGIES: Mapping[str, Strategy] = {
    "none": Strategy(cycle, lambda num_layers: num_layers),
    "universal": Strategy(cycle, lambda num_layers: 1),
    "sequence": Strategy(sequence),
    "cycle": Strategy(cycle),
    "cycle_rev": Strategy(cycle_rev),
    "sandwich": Strategy(sandwich, lambda num_layers: 3),
}
SHARING_CHOICES = (*STRATEGIES, "custom")


def relabel(labels: Iterable[Hashable]) -> LayerMap:
    """Rename labels by first use: (4, 4, 2, 4) becomes (0, 0, 1, 0)."""
    names: dict[Hashable, int] = {}
    return tuple(names.setdefault(label, len(names)) for label in labels)


def owners(layer_map: LayerMap) -> list[int]:
    """Return the owner of each parameter set, which is the first layer that uses it.

    Args:
        layer_map: N labels, relabeled by first use.

    Returns:
        M layer indices from 0, in ascending order.
    """
    return [layer_map.index(group) for group in range(num_unique(layer_map))]


def num_unique(layer_map: LayerMap) -> int:
    """Return M, the number of parameter sets of a map."""
    return max(layer_map, default=-1) + 1


def format_map(layer_map: LayerMap) -> str:
    """Format a map for ``--layer-map``: ``0,1,2,2,1,0``."""
    return ",".join(map(str, layer_map))


def make_layer_map(
    strategy: str,
    num_layers: int,
    num_unique_layers: int | None = None,
    custom: str | Iterable[Hashable] | None = None,
    stack: str = "",
) -> LayerMap:
    """Make the layer map of one stack.

    Args:
        strategy: one of ``SHARING_CHOICES``.
        num_layers: N, the number of layers of the stack.
        num_unique_layers: M, the number of parameter sets; required by sequence, cycle and cycle_rev, implied by the
            other strategies.
        custom: for ``custom``, N labels or a comma-separated string of them; layers with equal labels share.
        stack: ``encoder`` or ``decoder``, to name the flag in an error; empty for the flags of both stacks.

    Returns:
        N labels from 0 to M-1, relabeled by first use.

    Raises:
        SharingError: an unknown strategy, an M that the strategy or N does not allow, or a map of the wrong length.

    Source:
        Takase & Kiyono 2023, Algorithm 1, including the formulas for an M that does not divide N.
    """
    flag, n_flag = f"--{stack}-" if stack else "--", f"--{stack}-layers" if stack else "the number of layers"
    if strategy not in SHARING_CHOICES:
        raise SharingError(f"{flag}sharing must be one of {', '.join(SHARING_CHOICES)}, got {strategy}")
    if strategy == "custom":
        return _custom_map(custom, num_layers, num_unique_layers, flag, n_flag)
    if custom is not None:
        raise SharingError(f"{flag}layer-map {custom}: needs {flag}sharing custom, got {strategy}")

    fixed = STRATEGIES[strategy].fixed_unique_layers
    if fixed is None:
        if num_unique_layers is None:
            raise SharingError(
                f"{flag}unique-layers: missing; "
                f"{flag}sharing {strategy} needs a value from 1 to {n_flag} ({num_layers})"
            )
        m = num_unique_layers
    else:
        m = fixed(num_layers)
        if num_unique_layers not in (None, m):
            raise SharingError(
                f"{flag}unique-layers must be {m} (or omitted) with {flag}sharing {strategy} and {num_layers} layers, "
                f"got {num_unique_layers}"
            )
    if strategy == "sandwich" and num_layers < 3:
        raise SharingError(f"{flag}sharing sandwich: {n_flag} must be at least 3, got {num_layers}")
    if num_layers and not 1 <= m <= num_layers:
        raise SharingError(f"{flag}unique-layers must be between 1 and {n_flag} ({num_layers}), got {m}")
    return relabel(STRATEGIES[strategy].assign(num_layers, m)) if num_layers else ()


def _custom_map(
    custom: str | Iterable[Hashable] | None, num_layers: int, num_unique_layers: int | None, flag: str, n_flag: str
) -> LayerMap:
    if custom is None:
        raise SharingError(
            f"{flag}layer-map: missing; {flag}sharing custom needs {num_layers} labels, for example 0,1,1,0"
        )
    labels = [label.strip() for label in custom.split(",")] if isinstance(custom, str) else list(custom)
    shown = custom if isinstance(custom, str) else ",".join(map(str, labels))
    if len(labels) != num_layers or "" in labels:
        raise SharingError(f"{flag}layer-map must have {num_layers} labels ({n_flag}), got {len(labels)}: {shown}")
    layer_map = relabel(labels)
    if num_unique_layers not in (None, num_unique(layer_map)):
        raise SharingError(
            f"{flag}unique-layers must be {num_unique(layer_map)} (or omitted) with {flag}layer-map {shown}, "
            f"got {num_unique_layers}"
        )
    return layer_map


def parse_scope(scope: str | Iterable[str]) -> tuple[str, ...]:
    """Parse a scope: ``layer``, or comma-separated parts of a layer.

    Raises:
        SharingError: an unknown part, or ``layer`` together with a part.
    """
    parts = tuple(p.strip() for p in scope.split(",")) if isinstance(scope, str) else tuple(scope)
    if not parts or any(part not in SCOPES for part in parts) or ("layer" in parts and len(parts) > 1):
        raise SharingError(
            f"--sharing-scope must be layer, or some of {','.join(SCOPES[1:])}, got {','.join(parts) or 'nothing'}"
        )
    return tuple(part for part in SCOPES if part in parts)


@dataclass(frozen=True)
class ComponentMap:
    """The map of one component of a stack's layers.

    Args:
        component: one of ``SCOPES`` except ``layer``.
        labels: N labels; layers with equal labels use the same set of this component.
        space: name of the labels' name space if the sets span both stacks; empty for sets of this stack alone.
    """

    component: str
    labels: LayerMap
    space: str = ""


@dataclass(frozen=True)
class StackSharing:
    """How one stack shares parameters.

    Args:
        layer_map: N labels. With ``components``, layers with equal labels share all of their components.
        scope: ``("layer",)``, or the tied parts of a layer.
        components: the map of each component, if ``layer_map`` is not that of all parts in ``scope``; see ``of``.
    """

    layer_map: LayerMap
    scope: tuple[str, ...] = ("layer",)
    components: tuple[ComponentMap, ...] = ()

    @classmethod
    def of(cls, components: Iterable[ComponentMap]) -> StackSharing:
        """Combine the maps of all components of a stack; one map with a scope if that says the same.

        Args:
            components: at least one map, each of N labels.
        """
        ordered = tuple(sorted(components, key=lambda component: SCOPES.index(component.component)))
        sharing = [c for c in ordered if c.space or num_unique(c.labels) < len(c.labels)]
        scope = tuple(c.component for c in sharing)
        if len({(c.labels, c.space) for c in sharing}) <= 1 and not any(c.space for c in sharing):
            labels = sharing[0].labels if sharing else ordered[0].labels
            return cls(labels, scope if sharing and len(sharing) < len(ordered) else ("layer",))
        return cls(relabel(zip(*(c.labels for c in ordered), strict=True)), scope, ordered)

    @property
    def shares(self) -> bool:
        """Whether any two layers share a set."""
        return num_unique(self.layer_map) < len(self.layer_map) or bool(self.components)

    @property
    def maps(self) -> tuple[ComponentMap, ...]:
        """The map of each component, or of each part of the scope."""
        return self.components or tuple(ComponentMap(part, self.layer_map) for part in self.scope)

    @property
    def spans_stacks(self) -> bool:
        """Whether layers of the other stack use some of the sets."""
        return any(component.space for component in self.components)

    def lenders(self, depth: int) -> dict[int, tuple[str, ...]]:
        """Return the layers of this stack that a layer borrows parameters from, and the parts that it borrows."""
        found: dict[int, tuple[str, ...]] = {}
        for component in self.maps:
            owner = component.labels.index(component.labels[depth])
            if owner != depth:
                found[owner] = (*found.get(owner, ()), component.component)
        return found

    def of_component(self, component: str | None) -> ComponentMap | None:
        """Return the map of a component; None if its parameters belong to one layer each."""
        return next((c for c in self.maps if c.component in ("layer", component)), None)


def format_sharing(sharing: StackSharing) -> str:
    """Format the maps of a stack on one line: ``0,1,0,1 (ffn)``, or ``self_attn 0,1,2,3; ffn 0,0,1,1``."""
    if not sharing.components:
        return f"{format_map(sharing.layer_map)} ({','.join(sharing.scope)})"
    return "; ".join(map(format_component, sharing.components))


def format_component(component: ComponentMap) -> str:
    """Format the map of a component: ``ffn 0,0,1,1``, or ``ffn 0,0,1,1 (across stacks)``."""
    across = " (across stacks)" if component.space else ""
    return f"{component.component} {format_map(component.labels)}{across}"


def resolve_stack(options: Mapping[str, Any], stack: str, num_layers: int) -> StackSharing:
    """Resolve the sharing options of one stack; options of the stack override those of both stacks.

    Args:
        options: ``sharing``, ``unique_layers``, ``layer_map``, ``sharing_scope`` and the same with the prefix
            ``encoder_`` or ``decoder_``; a missing option equals None.
        stack: ``encoder`` or ``decoder``.
        num_layers: N, the number of layers of the stack.

    Raises:
        SharingError: the options do not define a valid map of N layers.
    """

    def option(name: str) -> Any:
        own = options.get(f"{stack}_{name}")
        return own if own is not None else options.get(name)

    # A stack with its own strategy does not inherit the map of both stacks, nor an M that its strategy fixes.
    chooses = options.get(f"{stack}_sharing") is not None
    pick = (lambda name: options.get(f"{stack}_{name}")) if chooses else option
    strategy = option("sharing") or "none"
    unique_layers = pick("unique_layers")
    if chooses and unique_layers is None and strategy in STRATEGIES and not STRATEGIES[strategy].fixed_unique_layers:
        unique_layers = options.get("unique_layers")
    has_own = any(options.get(f"{stack}_{name}") is not None for name in ("sharing", "unique_layers", "layer_map"))
    custom = pick("layer_map")
    layer_map = make_layer_map(str(strategy), num_layers, unique_layers, custom, stack if has_own else "")
    scope = parse_scope(option("sharing_scope") or "layer")
    sharing = StackSharing(layer_map, scope)
    if sharing.shares and scope != ("layer",) and not set(scope) & set(PARTS[stack]):
        raise SharingError(
            f"--{stack}-sharing-scope {','.join(scope)}: ties no part of the {stack}; allowed: "
            f"layer, or some of {','.join(PARTS[stack])}"
        )
    return sharing
