"""Presets: published sharing schemes as options (``--preset NAME``).

To add a preset, add a line to ``PRESETS``: options of this package and of fairseq, with underscores. A value that
depends on the model's sizes is a function of two arguments: the given options, and the same completed with the
defaults of the architecture.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import STACKS
from fairseq_sharing.options import flag_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preset:
    """A bundle of options.

    Args:
        shares: what shares parameters, in words.
        source: the publication.
        options: the options and their values, or functions of the given and of the completed options; an option whose
            function returns None is left out.
    """

    shares: str
    source: str
    options: Mapping[str, Any]


def _half(stack: str) -> Callable[[Namespace, Namespace], int | None]:
    """Return the M of one stack: half of its layers, rounded up, unless other flags choose the strategy or M."""

    def unique_layers(given: Namespace, sizes: Namespace) -> int | None:
        layers = getattr(sizes, f"{stack}_layers", None)
        chosen = any(getattr(given, name, None) for name in ("sharing", f"{stack}_sharing", "unique_layers"))
        return None if chosen or layers is None else -(-int(layers) // 2)

    return unique_layers


def _half_of_the_layers(strategy: str) -> dict[str, Any]:
    return {"sharing": strategy, **{f"{stack}_unique_layers": _half(stack) for stack in STACKS}}


def _one_wide_ffn(_given: Namespace, sizes: Namespace) -> int:
    """Return the width at which one FFN has about the parameters of those of all layers."""
    return (int(sizes.encoder_layers) + int(sizes.decoder_layers)) * int(sizes.decoder_ffn_embed_dim)


_PAPER = "Takase & Kiyono 2023, Section 3"
_WIDE = "Pires et al. 2023, One Wide Feedforward is All You Need"
_TIED = "Xia et al. 2019, Tied Transformers"
_BY_DEPTH = "ffn=by_depth;layer_norm=by_depth"

PRESETS: Mapping[str, Preset] = {
    "sequence": Preset("M = N / 2 sets in each stack: 0 0 1 1 2 2", _PAPER, _half_of_the_layers("sequence")),
    "cycle": Preset("M = N / 2 sets in each stack: 0 1 2 0 1 2", _PAPER, _half_of_the_layers("cycle")),
    "cycle_rev": Preset("M = N / 2 sets in each stack: 0 1 2 2 1 0", _PAPER, _half_of_the_layers("cycle_rev")),
    "sandwich": Preset(
        "all layers of a stack except the first and the last: 0 1 1 1 1 2",
        "Reid et al. 2021, Subformer, Section 3.1",
        {"sharing": "sandwich"},
    ),
    "albert": Preset(
        "all layers of a stack; embeddings factorized to 128 dimensions",
        "Lan et al. 2020, ALBERT",
        {"sharing": "universal", "embedding_factor_dim": 128},
    ),
    "one_wide_ffn": Preset(
        "one wide FFN for all encoder layers; decoder layers have no FFN",
        _WIDE,
        {
            "encoder_component_sharing": "ffn=universal",
            "decoder_no_ffn": True,
            "encoder_ffn_embed_dim": _one_wide_ffn,
        },
    ),
    "shared_ffn": Preset("one FFN per stack", _WIDE, {"component_sharing": "ffn=universal"}),
    "shared_ffn_across_stacks": Preset("one FFN for both stacks", _WIDE, {"cross_stack_sharing": "ffn=universal"}),
    "shared_attention": Preset(
        "one self-attention per stack, and one cross-attention",
        _WIDE,
        {"component_sharing": "self_attn=universal;encoder_attn=universal"},
    ),
    "tied_transformer": Preset(
        "encoder layer i and decoder layer i: self-attention, FFN and LayerNorms",
        _TIED,
        {"cross_stack_sharing": f"self_attn=by_depth;{_BY_DEPTH}"},
    ),
    "tied_transformer_cross": Preset(
        "as tied_transformer; the cross-attention of decoder layer i also uses the set of its self-attention",
        _TIED,
        {"cross_stack_sharing": f"attention=by_depth;{_BY_DEPTH}"},
    ),
}


def apply_preset(args: Namespace, known: Iterable[str], size: Callable[[Namespace], None]) -> None:
    """Replace ``--preset`` by its options; those that are given keep their values.

    Args:
        args: fairseq's arguments, before the defaults of the architecture.
        known: the options that the model has.
        size: sets the defaults of the architecture.

    Raises:
        SharingError: no such preset, or it needs an option that the model does not have.
    """
    name = getattr(args, "preset", None)
    if name is None:
        return
    if name not in PRESETS:
        raise SharingError(f"--preset {name}: no such preset; allowed: {', '.join(PRESETS)}")
    sizes = Namespace(**vars(args))
    size(sizes)
    applied: dict[str, Any] = {}
    given: dict[str, Any] = {}
    known = set(known)
    for option, value in PRESETS[name].options.items():
        if option not in known:
            usable = [other for other, preset in PRESETS.items() if known.issuperset(preset.options)]
            raise SharingError(
                f"--preset {name}: needs {flag_of(option)}, which this model does not have; "
                f"allowed: {', '.join(usable)}"
            )
        value = value(args, sizes) if callable(value) else value
        if getattr(args, option, None) is not None:
            given[option] = getattr(args, option)
        elif value is not None:
            applied[option] = value
    vars(args).update(applied)
    # A checkpoint records the options: a later change of a preset does not change a trained model.
    args.preset = None
    logger.info("preset %s: %s%s", name, _as_flags(applied), f"; given: {_as_flags(given)}" if given else "")


def _as_flags(options: Mapping[str, Any]) -> str:
    return " ".join(flag_of(name) + ("" if value is True else f" {value}") for name, value in options.items()) or "-"
