"""Export a model to CTranslate2, storing each shared tensor once, and compare its scores with fairseq's."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairseq_sharing.adapters.layer import count_merged, effective
from fairseq_sharing.admin.folding import fold_admin
from fairseq_sharing.decoding.ctranslate2_engine import import_ctranslate2, refuse_forked
from fairseq_sharing.decoding.exportable import refuse_several, refuse_unknown
from fairseq_sharing.decoding.exported_folder import refuse_other_content, write_manifest
from fairseq_sharing.decoding.fairseq_engine import load_models
from fairseq_sharing.decoding.model_card import Usage, write_card
from fairseq_sharing.decoding.model_files import EXPORTED, ModelFiles
from fairseq_sharing.decoding.reference_scores import Difference, ReferenceScores
from fairseq_sharing.errors import SharingError
from fairseq_sharing.factorized_embedding.folding import multiplied_out
from fairseq_sharing.files import replace_folder, temporary_folder
from fairseq_sharing.no_ffn.folding import zero_ffn

# Maximum difference of a subword's log-probability before quantization. Operations that CTranslate2 lacks cause
# differences of 0.1 and more.
_TOLERANCE = 0.01
# Mean difference above which a quantized model is wrong, not just rounded.
_ABSURD = 1.0


@dataclass(frozen=True)
class Exported:
    """Result of an export.

    Attributes:
        path: the output folder.
        size: size of its weights, in bytes.
        tensors: number of tensors that the model uses, and number of tensors that are stored.
        depth_tensors: number of additional tensors because those of shared layers differ per layer: matrices with
            Admin's weights, and weights with adapters or factors.
        difference: that of the written model (quantized, if requested), with the default arithmetic of ``translate``.
    """

    path: Path
    size: int
    tensors: tuple[int, int]
    depth_tensors: int
    difference: Difference


def export(files: ModelFiles, output: Path, quantization: str | None = None, card: bool = True) -> Exported:
    """Write a model for CTranslate2, with everything that is required to translate plain text.

    Args:
        files: one checkpoint.
        output: the folder to write; an existing exported model is replaced.
        quantization: type of the stored weights; None for single precision.
        card: whether to write a model card into the folder.

    Raises:
        SharingError: the model has no counterpart in CTranslate2, its weights or log-probabilities are NaN or
            infinite, or the folder contains something else.
    """
    library = import_ctranslate2()
    refuse_forked()
    refuse_several(files)
    refuse_other_content(output, EXPORTED)
    (model,), task, _ = load_models(files)
    with torch.no_grad():
        spec, depth_tensors = convert(model, task, files.name)
        with temporary_folder(output) as temporary:
            spec.optimize()
            tensors = _count_tensors(spec)
            # Score before quantization, which modifies the weights that the specification shares with the model.
            difference = _save_checked(
                library, spec, temporary, ReferenceScores.of(model, task, files.name), quantization
            )
            write_manifest(temporary, files, model, preparation=True)
            if card:
                lines = [f"fairseq-sharing translate {shlex.quote(output.resolve().name)} < INPUT"]
                stored = f"Weights are stored in {quantization}; the scores are those of the unquantized model."
                write_card(
                    temporary, files, model, Usage("ctranslate2", "bash", lines, [stored] if quantization else [])
                )
            replace_folder(temporary, output)
    return Exported(output, (output / EXPORTED).stat().st_size, tensors, depth_tensors, difference)


def convert(model: Any, task: Any, name: str) -> tuple[Any, int]:
    """Convert fairseq's model to CTranslate2's Transformer specification.

    Args:
        model: fairseq's model, in evaluation mode.
        task: the task with its dictionaries.
        name: name of the model in error messages.

    Returns:
        The specification, and the number of additional tensors: shared before, and different per layer now.

    Raises:
        SharingError: the model has no counterpart in CTranslate2.
    """
    from ctranslate2.converters import fairseq as converter
    from ctranslate2.specs import transformer_spec

    with multiplied_out(model), zero_ffn(model):
        return _convert(model, task, name, converter, transformer_spec)


def _convert(model: Any, task: Any, name: str, converter: Any, transformer_spec: Any) -> tuple[Any, int]:
    """Convert a model whose embeddings and layers have the modules of fairseq's."""
    refuse_unknown(model, task, name, "CTranslate2", converter._SUPPORTED_ACTIVATIONS)
    cfg = model.cfg
    common = {
        "activation": converter._SUPPORTED_ACTIVATIONS[cfg.activation_fn],
        "layernorm_embedding": cfg.layernorm_embedding,
    }
    encoder = transformer_spec.TransformerEncoderSpec(
        len(model.encoder.layers), cfg.encoder.attention_heads, pre_norm=cfg.encoder.normalize_before, **common
    )
    decoder = transformer_spec.TransformerDecoderSpec(
        len(model.decoder.layers),
        cfg.decoder.attention_heads,
        pre_norm=cfg.decoder.normalize_before,
        no_final_norm=model.decoder.layer_norm is None,
        **common,
    )
    spec = transformer_spec.TransformerSpec(encoder, decoder)
    layers = [*model.encoder.layers, *model.decoder.layers]
    with effective(*layers):
        converter.set_transformer_encoder(spec.encoder, model.encoder)
        converter.set_transformer_decoder(spec.decoder, model.decoder)
    spec.register_source_vocabulary(converter._get_vocab(task.source_dictionary))
    spec.register_target_vocabulary(converter._get_vocab(task.target_dictionary))
    spec.config.decoder_start_token = spec.config.eos_token
    spec.config.add_source_eos = True
    depth_tensors = fold_admin(spec, model, name) + count_merged(layers)
    spec.validate()
    return spec, depth_tensors


def _count_tensors(spec: Any) -> tuple[int, int]:
    """Count the tensors of a specification: all, and those that are stored (the others refer to equal ones)."""
    variables = spec.variables().values()
    names = sum(isinstance(value, str) for value in variables)
    stored = sum(not isinstance(value, str) and not value.is_scalar() for value in variables)
    return names + stored, stored


def compare(library: Any, reference: ReferenceScores, folder: Path) -> Difference:
    """Compare a written model's log-probabilities, computed in its stored type, with fairseq's.

    Args:
        library: the module ctranslate2.
        reference: fairseq's log-probabilities.
        folder: the written model.

    Raises:
        SharingError: a log-probability is NaN or infinite.
    """
    exported = library.Translator(str(folder), device="cpu", compute_type="default", intra_threads=1)
    scored = exported.score_batch(reference.sources, reference.targets)
    return reference.difference(torch.cat([torch.tensor(score.log_probs) for score in scored]), "CTranslate2")


def _save_checked(
    library: Any, spec: Any, folder: Path, reference: ReferenceScores, quantization: str | None
) -> Difference:
    """Write a specification to an empty folder, and reject a model whose scores differ from fairseq's."""
    spec.save(str(folder))
    difference = compare(library, reference, folder)
    if not difference.largest <= _TOLERANCE:
        raise SharingError(
            f"{reference.name}: the exported model's log-probabilities differ from fairseq's by "
            f"{difference.largest:.3g}; allowed: at most {_TOLERANCE}; the model uses an operation that CTranslate2 "
            "lacks; translate it with --engine fairseq"
        )
    if quantization is None:
        return difference
    for file in folder.iterdir():
        file.unlink()
    # A feed-forward network of zeros (no_ffn.folding) has no scale in int16; dividing by an infinite one gives zeros.
    with np.errstate(divide="ignore", invalid="ignore"):
        spec._quantize(quantization)
    spec.save(str(folder))
    difference = compare(library, reference, folder)
    if not difference.mean <= _ABSURD:
        raise SharingError(
            f"{reference.name}: with --quantization {quantization} the log-probabilities differ from fairseq's by "
            f"{difference.mean:.3g} per subword on average; allowed: at most {_ABSURD}; use another --quantization"
        )
    return difference
