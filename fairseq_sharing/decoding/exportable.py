"""Refuse models that another library would compute differently, before anything is converted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fairseq_sharing.decoding.model_files import SEVERAL_DIRECTIONS, ModelFiles
from fairseq_sharing.errors import SharingError
from fairseq_sharing.options import flag_of

# Options that change the computation and have no counterpart, with their allowed values.
_ONLY = {
    "cross_self_attention": False,
    "no_cross_attention": False,
    "no_token_positional_embeddings": False,
    "adaptive_softmax_cutoff": None,
    "depth_signal": "off",
    "position_per_depth": False,
    "act": "off",
    "b2t": False,
}
_ALLOWED = "allowed: transformer and transformer_sharing models; translate this one with --engine fairseq"


def refuse_several(files: ModelFiles) -> None:
    """Refuse an ensemble.

    Raises:
        SharingError: there are several checkpoints.
    """
    if len(files.checkpoints) != 1:
        raise SharingError(f"{files.name}: cannot export several checkpoints; allowed: one (average them first)")


def refuse_unknown(model: Any, task: Any, name: str, engine: str, activations: Iterable[str]) -> None:
    """Refuse a model that differs from fairseq's Transformer, or that uses operations which a library lacks.

    Args:
        model: fairseq's model.
        task: fairseq's task.
        name: name of the model in error messages.
        engine: name of the library in error messages.
        activations: the values of ``--activation-fn`` that it supports.

    Raises:
        SharingError: the model is not supported; the message names the flag or the class.
    """
    if hasattr(task, "data_manager"):
        raise SharingError(
            f"{name}: {engine} does not add the languages that {SEVERAL_DIRECTIONS} adds to sentences; "
            "translate this model with --engine fairseq"
        )
    from fairseq_sharing.models.layer_classes import parts_of

    cfg: Any = getattr(model, "cfg", None)
    for option, value in _ONLY.items():
        if getattr(cfg, option, value) != value:
            refuse_flag(name, engine, f"{flag_of(option)} {getattr(cfg, option)}")
    known = _known_types()
    for stack in (model.encoder, model.decoder):
        parts = (stack, *getattr(stack, "layers", ()))
        unknown = next((part for part in parts if not known.issuperset(parts_of(type(part)))), None)
        if unknown is not None:
            raise SharingError(f"{name}: {engine} does not support {type(unknown).__name__}; {_ALLOWED}")
    if cfg.activation_fn not in activations:
        flag = f"--activation-fn {cfg.activation_fn}"
        raise SharingError(f"{name}: {engine} does not support {flag}; allowed: {', '.join(sorted(activations))}")
    if model.decoder.project_out_dim is not None:
        refuse_flag(name, engine, f"--decoder-output-dim {cfg.decoder.output_dim}")


def refuse_flag(name: str, engine: str, flag: str) -> None:
    """Refuse a model because of a flag.

    Args:
        name: name of the model.
        engine: name of the library.
        flag: the flag, with its value if it has one.

    Raises:
        SharingError: always.
    """
    raise SharingError(f"{name}: {engine} does not support {flag}; {_ALLOWED}")


def _known_types() -> set[type]:
    from fairseq.models.transformer import transformer_decoder, transformer_encoder
    from fairseq.modules import transformer_layer

    from fairseq_sharing.admin import layers as admin_layers
    from fairseq_sharing.deep_norm import layers as deep_norm_layers
    from fairseq_sharing.models import transformer_sharing
    from fairseq_sharing.no_ffn.layers import WithoutFFN

    return {
        transformer_sharing.SharedTransformerEncoder,
        transformer_sharing.SharedTransformerDecoder,
        transformer_encoder.TransformerEncoder,
        transformer_encoder.TransformerEncoderBase,
        transformer_decoder.TransformerDecoder,
        transformer_decoder.TransformerDecoderBase,
        admin_layers.AdminEncoderLayer,
        admin_layers.AdminDecoderLayer,
        deep_norm_layers.DeepNormEncoder,
        deep_norm_layers.DeepNormDecoder,
        WithoutFFN,
        transformer_layer.TransformerEncoderLayerBase,
        transformer_layer.TransformerDecoderLayerBase,
    }
