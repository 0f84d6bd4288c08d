"""Export a model to CTranslate2, storing each shared tensor once, and compare its scores with fairseq's."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairseq_sharing.admin.folding import fold_admin
from fairseq_sharing.decoding.ctranslate2_engine import import_ctranslate2, refuse_forked
from fairseq_sharing.decoding.fairseq_engine import load_models
from fairseq_sharing.decoding.model_files import EXPORTED, SEVERAL_DIRECTIONS, ModelFiles, read_manifest
from fairseq_sharing.errors import SharingError
from fairseq_sharing.factorized_embedding.folding import multiplied_out
from fairseq_sharing.files import atomic_write, replace_folder, sha256, temporary_folder
from fairseq_sharing.no_ffn.folding import zero_ffn
from fairseq_sharing.options import flag_of

# Maximum difference of a subword's log-probability before quantization. Operations that CTranslate2 lacks cause
# differences of 0.1 and more.
_TOLERANCE = 0.01
# Mean difference above which a quantized model is wrong, not just rounded.
_ABSURD = 1.0
_CHECKED_LENGTHS = (1, 2, 3, 5, 8, 13, 21)  # lengths of the compared sentences, in subwords

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


@dataclass(frozen=True)
class Difference:
    """Difference between an exported model's log-probabilities (natural) and fairseq's, over random sentences.

    Attributes:
        largest: the largest absolute difference.
        mean: the mean absolute difference.
    """

    largest: float
    mean: float


@dataclass(frozen=True)
class Exported:
    """Result of an export.

    Attributes:
        path: the output folder.
        size: size of its weights, in bytes.
        tensors: number of tensors that the model uses, and number of tensors that are stored.
        depth_tensors: number of tensors of shared layers that differ per layer because of Admin's weights.
        difference: that of the written model (quantized, if requested), with the default arithmetic of ``translate``.
    """

    path: Path
    size: int
    tensors: tuple[int, int]
    depth_tensors: int
    difference: Difference


def export(files: ModelFiles, output: Path, quantization: str | None = None) -> Exported:
    """Write a model for CTranslate2, with everything that is required to translate plain text.

    Args:
        files: one checkpoint.
        output: the folder to write; an existing exported model is replaced.
        quantization: type of the stored weights; None for the type in the checkpoint.

    Raises:
        SharingError: the model has no counterpart in CTranslate2, its weights or log-probabilities are NaN or
            infinite, or the folder contains something else.
    """
    library = import_ctranslate2()
    refuse_forked()
    if len(files.checkpoints) != 1:
        raise SharingError(f"{files.name}: cannot export several checkpoints; allowed: one (average them first)")
    if output.exists() and not (output / EXPORTED).is_file() and not (output.is_dir() and not any(output.iterdir())):
        raise SharingError(f"--output {output}: exists and is not an exported model; give another folder")
    (model,), task, _ = load_models(files)
    with torch.no_grad():
        spec, depth_tensors = convert(model, task, files.name)
        with temporary_folder(output) as temporary:
            spec.optimize()
            tensors = _count_tensors(spec)
            # Score before quantization, which modifies the weights that the specification shares with the model.
            difference = _save_checked(library, spec, temporary, _Reference.of(model, task, files.name), quantization)
            _write_manifest(temporary, files, model)
            replace_folder(temporary, output)
    return Exported(output, (output / EXPORTED).stat().st_size, tensors, depth_tensors, difference)


def convert(model: Any, task: Any, name: str) -> tuple[Any, int]:
    """Convert fairseq's model to CTranslate2's Transformer specification.

    Args:
        model: fairseq's model, in evaluation mode.
        task: the task with its dictionaries.
        name: name of the model in error messages.

    Returns:
        The specification, and the number of matrices that differ per layer because of Admin.

    Raises:
        SharingError: the model has no counterpart in CTranslate2.
    """
    from ctranslate2.converters import fairseq as converter
    from ctranslate2.specs import transformer_spec

    if hasattr(task, "data_manager"):
        raise SharingError(
            f"{name}: CTranslate2 does not add the languages that {SEVERAL_DIRECTIONS} adds to sentences; "
            "translate this model with --engine fairseq"
        )
    with multiplied_out(model), zero_ffn(model):
        return _convert(model, task, name, converter, transformer_spec)


def _convert(model: Any, task: Any, name: str, converter: Any, transformer_spec: Any) -> tuple[Any, int]:
    """Convert a model whose embeddings and layers have the modules of fairseq's."""
    cfg = model.cfg
    _refuse_unknown(model, name, converter._SUPPORTED_ACTIVATIONS)
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
    converter.set_transformer_encoder(spec.encoder, model.encoder)
    converter.set_transformer_decoder(spec.decoder, model.decoder)
    spec.register_source_vocabulary(converter._get_vocab(task.source_dictionary))
    spec.register_target_vocabulary(converter._get_vocab(task.target_dictionary))
    spec.config.decoder_start_token = spec.config.eos_token
    spec.config.add_source_eos = True
    depth_tensors = fold_admin(spec, model, name)
    spec.validate()
    return spec, depth_tensors


def _refuse_unknown(model: Any, name: str, activations: Any) -> None:
    """Reject a model that CTranslate2 would compute differently."""
    from fairseq.models.transformer import transformer_decoder, transformer_encoder
    from fairseq.modules import transformer_layer

    from fairseq_sharing.admin import layers as admin_layers
    from fairseq_sharing.deep_norm import layers as deep_norm_layers
    from fairseq_sharing.models import transformer_sharing
    from fairseq_sharing.models.layer_classes import parts_of
    from fairseq_sharing.no_ffn.layers import WithoutFFN

    known = {
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
    allowed = "allowed: transformer and transformer_sharing models; translate this one with --engine fairseq"
    cfg = model.cfg
    for option, value in _ONLY.items():
        if getattr(cfg, option, value) != value:
            flag = f"{flag_of(option)} {getattr(cfg, option)}"
            raise SharingError(f"{name}: CTranslate2 does not support {flag}; {allowed}")
    for stack in (model.encoder, model.decoder):
        parts = (stack, *getattr(stack, "layers", ()))
        unknown = next((part for part in parts if not known.issuperset(parts_of(type(part)))), None)
        if unknown is not None:
            raise SharingError(f"{name}: CTranslate2 does not support {type(unknown).__name__}; {allowed}")
    if cfg.activation_fn not in activations:
        flag, known_activations = f"--activation-fn {cfg.activation_fn}", ", ".join(sorted(activations))
        raise SharingError(f"{name}: CTranslate2 does not support {flag}; allowed: {known_activations}")
    if model.decoder.project_out_dim is not None:
        flag = f"--decoder-output-dim {cfg.decoder.output_dim}"
        raise SharingError(f"{name}: CTranslate2 does not support {flag}; {allowed}")


def _count_tensors(spec: Any) -> tuple[int, int]:
    """Count the tensors of a specification: all, and those that are stored (the others refer to equal ones)."""
    variables = spec.variables().values()
    names = sum(isinstance(value, str) for value in variables)
    stored = sum(not isinstance(value, str) and not value.is_scalar() for value in variables)
    return names + stored, stored


@dataclass(frozen=True)
class _Reference:
    """fairseq's log-probabilities of the subwords of random sentences, including the ends of the sentences."""

    name: str
    sources: list[list[str]]
    targets: list[list[str]]
    scores: torch.Tensor

    @classmethod
    def of(cls, model: Any, task: Any, name: str) -> _Reference:
        """Draw random sentences and score them with fairseq's model."""
        draw = np.random.default_rng(1)
        scored: list[tuple[list[str], list[str], torch.Tensor]] = []
        for length in _CHECKED_LENGTHS:
            source = _draw(draw, task.source_dictionary, length)
            target = _draw(draw, task.target_dictionary, length)
            ids = task.target_dictionary.encode_line(" ".join(target), add_if_not_exist=False).long()
            inputs = task.source_dictionary.encode_line(" ".join(source), add_if_not_exist=False).long()[None]
            output = model(inputs, torch.tensor([inputs.shape[1]]), ids.roll(1)[None])
            scores = model.get_normalized_probs(output, log_probs=True)[0].gather(1, ids[:, None])[:, 0]
            scored.append((source, target, scores))
        sources, targets, scores_of = zip(*scored, strict=True)
        return cls(name, list(sources), list(targets), _finite(torch.cat(scores_of), f"{name}: fairseq"))

    def compare(self, library: Any, folder: Path) -> Difference:
        """Compare a written model's log-probabilities, computed in its stored type, with fairseq's."""
        exported = library.Translator(str(folder), device="cpu", compute_type="default", intra_threads=1)
        found = [torch.tensor(score.log_probs) for score in exported.score_batch(self.sources, self.targets)]
        difference = (self.scores - _finite(torch.cat(found), f"{self.name}: CTranslate2")).abs()
        return Difference(float(difference.max()), float(difference.mean()))


def _save_checked(library: Any, spec: Any, folder: Path, reference: _Reference, quantization: str | None) -> Difference:
    """Write a specification to an empty folder, and reject a model whose scores differ from fairseq's."""
    spec.save(str(folder))
    difference = reference.compare(library, folder)
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
    difference = reference.compare(library, folder)
    if not difference.mean <= _ABSURD:
        raise SharingError(
            f"{reference.name}: with --quantization {quantization} the log-probabilities differ from fairseq's by "
            f"{difference.mean:.3g} per subword on average; allowed: at most {_ABSURD}; use another --quantization"
        )
    return difference


def _finite(scores: torch.Tensor, engine: str) -> torch.Tensor:
    if not scores.isfinite().all():
        raise SharingError(f"{engine} computes log-probabilities that are NaN or infinite; allowed: finite values")
    return scores


def _draw(draw: np.random.Generator, dictionary: Any, length: int) -> list[str]:
    return [dictionary[int(index)] for index in draw.integers(dictionary.nspecial, len(dictionary), length)]


def _write_manifest(folder: Path, files: ModelFiles, model: Any) -> None:
    """Write the text preparation of the model, in the format of a data directory's manifest."""
    manifest: dict[str, Any] = {f"{side}_lang": lang for side, lang in (files.languages or {}).items()}
    if files.manifest is not None:
        prepared = read_manifest(files.manifest, ("tokenizer", "subword")) or {}
        manifest |= {"tokenizer": prepared["tokenizer"], "subword": prepared["subword"]}
        if subwords := prepared["subword"].get("model"):
            shutil.copyfile(files.manifest / subwords, folder / Path(subwords).name)
    source, target = model.max_positions()
    manifest |= {
        "max_tokens": {"source": source - 1, "target": target - 1},
        "layer_map": {stack: list(sharing.layer_map) for stack, sharing in getattr(model, "sharing", {}).items()},
        "sha256": {file.name: sha256(file) for file in sorted(folder.iterdir())},
    }
    with atomic_write(folder / "manifest.json") as file:
        file.write((json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode())
