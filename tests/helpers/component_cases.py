"""Test cases of maps per component: options, and the owner of each component of each layer, written by hand."""

from __future__ import annotations

import re
from dataclasses import dataclass

OWN = [0, 1, 2, 3, 4, 5]
ONE = [0] * 6
COMPONENT = {"self_attn": "self_attn", "encoder_attn": "encoder_attn", "fc1": "ffn", "fc2": "ffn"}


@dataclass(frozen=True)
class ComponentCase:
    """Options, and the owners of what layers do not own themselves.

    Attributes:
        owners: for a component of a stack, the owning stack, its component and its layer for each of the 6 layers.
    """

    name: str
    options: dict
    owners: dict[tuple[str, str], tuple[str, str, list[int]]]
    parameters: int  # unique parameters of all layers, in units of one attention, one FFN and one LayerNorm

    def source(self, name: str) -> str:
        """Return the canonical name of a parameter."""
        match = re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.(\w+)\.(.+)", name)
        if not match:
            return name
        stack, depth, module, rest = match[1], int(match[2]), match[3], match[4]
        component = COMPONENT.get(module, "layer_norm")
        lender, lent, depths = self.owners.get((stack, component), (stack, component, OWN))
        if component == "layer_norm" and module == "encoder_attn_layer_norm":
            lender = "decoder"
        if component.endswith("attn"):
            module = lent
        return f"{lender}.layers.{depths[depth]}.{module}.{rest}"


ATTENTION, FFN, NORM = 4 * (16 * 16 + 16), 2 * 16 * 32 + 32 + 16, 2 * 16
CASES = (
    ComponentCase(
        "mixed",
        {"component_sharing": "ffn=universal; self_attn=cycle:2"},
        {
            ("encoder", "ffn"): ("encoder", "ffn", ONE),
            ("decoder", "ffn"): ("decoder", "ffn", ONE),
            ("encoder", "self_attn"): ("encoder", "self_attn", [0, 1, 0, 1, 0, 1]),
            ("decoder", "self_attn"): ("decoder", "self_attn", [0, 1, 0, 1, 0, 1]),
        },
        (2 + 2 + 6) * ATTENTION + 2 * FFN + 30 * NORM,
    ),
    ComponentCase(
        "per_stack",
        {
            "sharing": "cycle_rev",
            "unique_layers": 3,
            "component_sharing": "layer_norm=none;ffn=sandwich",
            "encoder_component_sharing": "self_attn=none;ffn=a,a,b,b,c,c",
        },
        {
            ("encoder", "ffn"): ("encoder", "ffn", [0, 0, 2, 2, 4, 4]),
            ("decoder", "self_attn"): ("decoder", "self_attn", [0, 1, 2, 2, 1, 0]),
            ("decoder", "encoder_attn"): ("decoder", "encoder_attn", [0, 1, 2, 2, 1, 0]),
            ("decoder", "ffn"): ("decoder", "ffn", [0, 1, 1, 1, 1, 5]),
        },
        (6 + 3 + 3) * ATTENTION + (3 + 3) * FFN + 30 * NORM,
    ),
    ComponentCase(
        "one_ffn",
        {"cross_stack_sharing": "ffn=universal"},
        {("encoder", "ffn"): ("encoder", "ffn", ONE), ("decoder", "ffn"): ("encoder", "ffn", ONE)},
        18 * ATTENTION + FFN + 30 * NORM,
    ),
    ComponentCase(
        "tied",
        {"cross_stack_sharing": "self_attn=by_depth;ffn=by_depth;layer_norm=by_depth"},
        {("decoder", part): ("encoder", part, OWN) for part in ("self_attn", "ffn", "layer_norm")},
        12 * ATTENTION + 6 * FFN + 18 * NORM,
    ),
    ComponentCase(
        "tied_attention",
        {"cross_stack_sharing": "attention=cycle:3;ffn=by_depth", "component_sharing": "layer_norm=sandwich"},
        {
            ("encoder", "self_attn"): ("encoder", "self_attn", [0, 1, 2, 0, 1, 2]),
            ("decoder", "self_attn"): ("encoder", "self_attn", [0, 1, 2, 0, 1, 2]),
            ("decoder", "encoder_attn"): ("encoder", "self_attn", [0, 1, 2, 0, 1, 2]),
            ("decoder", "ffn"): ("encoder", "ffn", OWN),
            ("encoder", "layer_norm"): ("encoder", "layer_norm", [0, 1, 1, 1, 1, 5]),
            ("decoder", "layer_norm"): ("decoder", "layer_norm", [0, 1, 1, 1, 1, 5]),
        },
        3 * ATTENTION + 6 * FFN + (3 * 2 + 3 * 3) * NORM,
    ),
    ComponentCase(
        "first_attention",
        {"cross_stack_sharing": "self_attn=0,1,2,3,4,5,0,0,0,6,6,6", "decoder_component_sharing": "ffn=cycle:2"},
        {
            ("decoder", "self_attn"): ("encoder", "self_attn", ONE),
            ("decoder", "ffn"): ("decoder", "ffn", [0, 1, 0, 1, 0, 1]),
        },
        (6 + 1 + 6) * ATTENTION + 8 * FFN + 30 * NORM,
    ),
)


def _first_attention(name: str) -> str:
    """The last three decoder layers of ``first_attention`` share a set of the decoder."""
    match = re.fullmatch(r"decoder\.layers\.([345])\.self_attn\.(.+)", name)
    return f"decoder.layers.3.self_attn.{match[2]}" if match else CASES[-1].source(name)


def source(case: ComponentCase, name: str) -> str:
    """Return the canonical name of a parameter."""
    return _first_attention(name) if case is CASES[-1] else case.source(name)


BY_NAME = {case.name: case for case in CASES}
