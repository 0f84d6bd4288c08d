"""The kinds of depth parameters: reading options, validation, and what a checkpoint records."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fairseq_sharing.errors import SharingError
from fairseq_sharing.options import flag_of

# Matrix in the flag -> names in a layer. Every attention has the first four.
_IN_ATTENTION = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}
_ATTENTIONS = ("self_attn", "encoder_attn")
MATRICES = (*_IN_ATTENTION, "fc1", "fc2")
# What is multiplied by one factor per output unit; the units of fc2 are its inputs.
SCALED = ("k", "v", "fc2")
_NOISE = ("quant_noise_pq", "quant_noise_scalar")


DEPTH_OPTIONS = ("depth_lora", "depth_lora_of", "depth_scale", "depth_bias", "depth_norm")


@dataclass(frozen=True)
class DepthKinds:
    """The depth parameters of a model.

    Attributes:
        rank: rank of the adapters; 0 for none.
        of: the matrices with an adapter, in the order of ``MATRICES``.
        scale: whether keys, values and feed-forward units have factors.
        bias: whether biases belong to the depth.
        norm: whether LayerNorms belong to the depth.
    """

    rank: int = 0
    of: tuple[str, ...] = ()
    scale: bool = False
    bias: bool = False
    norm: bool = False

    @classmethod
    def read(cls, options: Any) -> DepthKinds:
        """Read the kinds from fairseq's arguments, its TransformerConfig, or another object with these attributes.

        Raises:
            SharingError: a rank below 1, or an unknown matrix.
        """
        rank = getattr(options, "depth_lora", None)
        scale, bias, norm = (bool(getattr(options, f"depth_{name}", False)) for name in ("scale", "bias", "norm"))
        if rank is None:
            return cls(scale=scale, bias=bias, norm=norm)
        if rank < 1:
            raise SharingError(f"--depth-lora {rank}: the rank of an adapter; allowed: 1 or more")
        of = getattr(options, "depth_lora_of", None)
        given = str(",".join(MATRICES) if of is None else of).split(",")
        if not set(given) <= set(MATRICES) or len(set(given)) != len(given):
            raise SharingError(
                f"--depth-lora-of {','.join(given)}: allowed: a comma-separated list of {', '.join(MATRICES)}"
            )
        return cls(rank, tuple(matrix for matrix in MATRICES if matrix in given), scale, bias, norm)

    @classmethod
    def recorded(cls, record: Any) -> DepthKinds:
        """Read the kinds from the entry of a checkpoint.

        Raises:
            ValueError: the entry is malformed.
        """
        if not isinstance(record, Mapping) or not set(record) <= {"lora", "scale", "bias", "norm"}:
            raise ValueError("unknown entries")
        switches = {name: record[name] for name in ("scale", "bias", "norm") if name in record}
        if not all(value is True for value in switches.values()):
            raise ValueError("a switch that is not true")
        lora = record.get("lora", {"rank": 0, "of": []})
        if not isinstance(lora, Mapping) or set(lora) != {"rank", "of"} or type(lora["rank"]) is not int:
            raise ValueError("an adapter without rank and matrices")
        if "lora" in record and (lora["rank"] < 1 or not lora["of"] or not set(lora["of"]) <= set(MATRICES)):
            raise ValueError("an impossible rank or matrix")
        return cls(lora["rank"], tuple(lora["of"]), **switches)

    def __bool__(self) -> bool:
        """Return whether there are any depth parameters."""
        return self != DepthKinds()

    @property
    def record(self) -> dict[str, Any]:
        """The entry of a checkpoint: plain lists and strings."""
        lora = {"lora": {"rank": self.rank, "of": list(self.of)}} if self.rank else {}
        return {**lora, **{name: True for name in ("scale", "bias", "norm") if getattr(self, name)}}

    @property
    def flags(self) -> str:
        """The flags that give these kinds; empty if there are none."""
        words = [f"--depth-lora {self.rank}"] if self.rank else []
        words += [f"--depth-lora-of {','.join(self.of)}"] if self.rank and self.of != MATRICES else []
        return " ".join([*words, *(f"--depth-{name}" for name in ("scale", "bias", "norm") if getattr(self, name))])

    def adapted(self) -> list[str]:
        """List the names within a layer that may have an adapter, for example ``self_attn.q_proj``."""
        return _names(self.of)

    def scaled(self) -> list[str]:
        """List the names within a layer that may have factors."""
        return _names(SCALED) if self.scale else []


def _names(matrices: tuple[str, ...]) -> list[str]:
    inside = [f"{attention}.{_IN_ATTENTION[m]}" for attention in _ATTENTIONS for m in matrices if m in _IN_ATTENTION]
    return inside + [matrix for matrix in matrices if matrix not in _IN_ATTENTION]


def validate_depth(args: Namespace, stacks: tuple[str, ...]) -> None:
    """Check the options of the depth parameters against the other arguments of a model.

    Args:
        args: fairseq's arguments after the architecture was applied.
        stacks: the stacks that the model has.

    Raises:
        SharingError: an impossible rank, an unknown matrix, or an option that cannot be combined with them.
    """
    kinds = DepthKinds.read(args)
    if kinds.rank:
        widths = [
            int(getattr(args, f"{stack}_{width}")) for stack in stacks for width in ("embed_dim", "ffn_embed_dim")
        ]
        if kinds.rank > min(widths):
            raise SharingError(
                f"--depth-lora {kinds.rank}: the smallest matrix has rank {min(widths)}; allowed: 1 to {min(widths)}"
            )
    if not (kinds.rank or kinds.scale):
        return
    flag = f"--depth-lora {kinds.rank}" if kinds.rank else "--depth-scale"
    for name in _NOISE:
        if getattr(args, name, 0):
            raise SharingError(
                f"{flag_of(name)} {getattr(args, name)} cannot be combined with {flag}: the noise would change the "
                "shared matrix, not the one that the depth uses; allowed: 0"
            )
    if getattr(args, "ddp_backend", None) == "fully_sharded":
        raise SharingError(
            f"--ddp-backend fully_sharded cannot be combined with {flag}, which needs whole matrices; "
            "allowed: c10d, legacy_ddp, no_c10d, pytorch_ddp"
        )
