"""Test cases of sharing: options of every strategy and the expected layer maps."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

LAYERS = 6
NORMS = ("pre", "post")
# Names of the layer parameters that each scope ties.
SCOPE_PATTERNS = {
    "layer": r".*",
    "self_attn": r"self_attn\.",
    "encoder_attn": r"encoder_attn\.",
    "ffn": r"fc[12]\.",
    "layer_norm": r"(self_attn_|encoder_attn_|final_)layer_norm\.",
}


@dataclass(frozen=True)
class Case:
    """Sharing options and the expected layer maps."""

    name: str
    encoder: tuple[int, ...]
    decoder: tuple[int, ...]
    options: dict = field(default_factory=dict)

    @property
    def shares(self) -> bool:
        return len(set(self.encoder)) < LAYERS or len(set(self.decoder)) < LAYERS

    @property
    def scope(self) -> tuple[str, ...]:
        return tuple(self.options.get("sharing_scope", "layer").split(","))

    @property
    def rounding(self) -> float:
        """Tolerance for outputs of order 1: the fast path sums in a different order than fairseq."""
        return 1e-5 if self.options.get("fast") else 1e-6

    def layer_map(self, stack: str) -> tuple[int, ...]:
        return getattr(self, stack)

    def owner(self, stack: str, depth: int) -> int:
        """Return the first layer that uses a layer's parameter set."""
        return self.layer_map(stack).index(self.layer_map(stack)[depth])

    def ties(self, name: str) -> bool:
        """Return whether the scope ties the parameter with this name within a layer."""
        return any(re.match(SCOPE_PATTERNS[part], name) for part in self.scope)

    def source(self, name: str) -> str:
        """Return the canonical name of a layer's parameter, for example ``encoder.layers.4.fc1.weight``."""
        match = re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.(.+)", name)
        if not match or not self.ties(match[3]):
            return name
        return f"{match[1]}.layers.{self.owner(match[1], int(match[2]))}.{match[3]}"


def _both(name: str, labels: tuple[int, ...], **options) -> Case:
    return Case(name, labels, labels, options)


# N is 6, and at least 2 M for strategies with a free choice of M.
CASES = (
    _both("none", (0, 1, 2, 3, 4, 5)),
    _both("universal", (0, 0, 0, 0, 0, 0), sharing="universal"),
    _both("sequence", (0, 0, 1, 1, 2, 2), sharing="sequence", unique_layers=3),
    _both("cycle", (0, 1, 2, 0, 1, 2), sharing="cycle", unique_layers=3),
    _both("cycle_rev", (0, 1, 2, 2, 1, 0), sharing="cycle_rev", unique_layers=3),
    _both("sandwich", (0, 1, 1, 1, 1, 2), sharing="sandwich"),
    _both("custom", (0, 1, 1, 0, 2, 2), sharing="custom", layer_map="b,a,a,b,7,7"),
    _both(
        "attention_scope", (0, 1, 0, 1, 0, 1), sharing="cycle", unique_layers=2, sharing_scope="self_attn,layer_norm"
    ),
    _both("ffn_scope", (0, 0, 0, 1, 1, 1), sharing="sequence", unique_layers=2, sharing_scope="encoder_attn,ffn"),
    Case(
        "per_stack",
        (0, 0, 0, 1, 1, 1),
        (0, 1, 2, 2, 1, 0),
        {"sharing": "sequence", "unique_layers": 2, "decoder_sharing": "cycle_rev", "decoder_unique_layers": 3},
    ),
)
# Every test of a case also runs on the fast path.
CASES += tuple(replace(case, name=f"{case.name}-fast", options={**case.options, "fast": True}) for case in CASES)
BY_NAME = {case.name: case for case in CASES}
# All pairs of a map, a norm and a path, half of the triples: the map only chooses each layer's parameters, and the fast
# path replaces dropout and attention of a finished model, so a triple adds nothing to its pairs.
WITH_NORMS = [
    (case, NORMS[(number + bool(case.options.get("fast"))) % 2])
    for number, case in zip([*range(len(CASES) // 2)] * 2, CASES, strict=True)
]
