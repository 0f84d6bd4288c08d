"""Export a model to Hugging Face's transformers, with its tokenizer and search, and compare it with fairseq."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fairseq_sharing.decoding.exportable import refuse_several
from fairseq_sharing.decoding.exported_folder import refuse_other_content, write_manifest
from fairseq_sharing.decoding.fairseq_engine import load_models
from fairseq_sharing.decoding.huggingface_check import check
from fairseq_sharing.decoding.huggingface_config import (
    Family,
    choose_family,
    generation_config,
    model_config,
    vocabulary_config,
)
from fairseq_sharing.decoding.huggingface_library import MODELING, copy_code, find_class, import_transformers
from fairseq_sharing.decoding.huggingface_tokenizer import CUSTOM, write_tokenizer
from fairseq_sharing.decoding.huggingface_weights import Weights, all_layers, convert_weights, stored_once
from fairseq_sharing.decoding.model_card import Usage, write_card
from fairseq_sharing.decoding.model_files import ModelFiles
from fairseq_sharing.decoding.reference_scores import Difference, ReferenceScores
from fairseq_sharing.decoding.search import Search
from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import replace_folder, temporary_folder

WEIGHTS = "model.safetensors"
_LIMITS = (
    "Give an attention mask for padded batches, as the tokenizer does, and do not generate with `use_cache=False`.",
    "Decoding with `skip_special_tokens=True` omits unknown words. An empty line is translated like any other line.",
)


@dataclass(frozen=True)
class Exported:
    """Result of an export.

    Attributes:
        path: the output folder.
        architecture: the class of the model.
        tokenizer: the class of the tokenizer; empty if there is none for the text preparation.
        size: size of the weights, in bytes.
        tensors: number of tensors that the model uses, and number of tensors that are stored.
        difference: of the log-probabilities.
    """

    path: Path
    architecture: str
    tokenizer: str
    size: int
    tensors: tuple[int, int]
    difference: Difference


def export(files: ModelFiles, output: Path, search: Search | None = None, keep_sharing: bool = False) -> Exported:
    """Write a folder that transformers loads.

    Args:
        files: one checkpoint.
        output: the folder to write; an existing exported model is replaced.
        search: settings of the beam search, which become the defaults of ``generate``; None for those of ``translate``.
        keep_sharing: store the weights of shared layers once, with a Python file that ties them.

    Raises:
        SharingError: no class of transformers computes the same, weights or log-probabilities are NaN or infinite, or
            the folder contains something else.
    """
    import_transformers()
    refuse_several(files)
    refuse_other_content(output, WEIGHTS)
    (model,), task, _ = load_models(files)
    with torch.no_grad(), temporary_folder(output) as temporary:
        family = choose_family(model, task, files.name)
        weights = convert_weights(model, family.name, files.name)
        config = model_config(model, task, weights.tied_embeddings)
        config |= vocabulary_config(family, task, files.languages)
        stored = _write_weights(temporary, family, weights, config, keep_sharing, files.name)
        source, target = model.max_positions()
        settings = generation_config(config, search or Search(), target)
        find_class("GenerationConfig")(**settings).save_pretrained(temporary)
        reference = ReferenceScores.of(model, task, files.name)
        difference = check(temporary, family, keep_sharing, reference)
        tokenizer = write_tokenizer(temporary, files, task, source, reference.sources)
        write_manifest(temporary, files, model, preparation=False)
        lines = usage(output.resolve().name, tokenizer, keep_sharing) if tokenizer else []
        limits = [f"Tested with transformers {import_transformers().__version__}.", *_LIMITS]
        write_card(temporary, files, model, Usage("transformers", "python", lines, limits))
        replace_folder(temporary, output)
    return Exported(
        output,
        family.architecture(keep_sharing),
        tokenizer,
        (output / WEIGHTS).stat().st_size,
        (len(weights.tensors), stored),
        difference,
    )


def usage(folder: str, tokenizer: str, keep_sharing: bool) -> list[str]:
    """Return the Python code that translates with an exported folder.

    Args:
        folder: the folder.
        tokenizer: the class of its tokenizer.
        keep_sharing: whether the weights of shared layers are stored once.
    """
    code = {True: f"{folder!r}, trust_remote_code=True", False: repr(folder)}
    return [
        "from transformers import AutoModelForSeq2SeqLM, AutoTokenizer",
        f"tokenizer = AutoTokenizer.from_pretrained({code[tokenizer == CUSTOM]})",
        f"model = AutoModelForSeq2SeqLM.from_pretrained({code[keep_sharing]})",
        'inputs = tokenizer(sentences, return_tensors="pt", padding=True, truncation=True)',
        "print(tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True))",
    ]


def _write_weights(
    folder: Path, family: Family, weights: Weights, config: dict[str, Any], keep_sharing: bool, model: str
) -> int:
    """Write the weights and the configuration of the model; return the number of stored tensors."""
    from safetensors.torch import save

    aliases = family.aliases if weights.tied_embeddings else ()
    architecture, config_class = family.architecture(keep_sharing), family.config_of(keep_sharing)
    if keep_sharing:
        tensors, config["shared_weights"] = stored_once(weights, aliases)
        if not config["shared_weights"]:
            raise SharingError(f"--keep-sharing: no layer of {model} shares weights; omit --keep-sharing")
        if family.name == "fsmt":
            config["stored_positions"] = weights.folded_positions
        automatic = {"AutoConfig": config_class, "AutoModelForSeq2SeqLM": architecture}
        config["auto_map"] = {key: f"{MODELING}.{value}" for key, value in automatic.items()}
        copy_code(folder, MODELING)
    else:
        tensors = all_layers(weights, aliases)
    made = find_class(config_class, MODELING if keep_sharing else None)(**config, architectures=[architecture])
    made.save_pretrained(folder)
    (folder / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))
    return len(tensors)
