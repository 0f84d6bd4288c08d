"""The file of a classifier, beside the checkpoint of its model: JSON, so that reading it executes no code.

The checkpoint stays as it is, so every command and fairseq itself load it as before. Its hash in the file ties the
classifier to its weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from fairseq_sharing.depths.settings import AUTO, describe
from fairseq_sharing.documents import (
    Schema,
    has_fields,
    is_count,
    is_name,
    is_quantity,
    is_text,
    list_of,
    mapping_of,
    read_json,
)
from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import sha256, write_text
from fairseq_sharing.finite import is_number
from fairseq_sharing.sentence_depth.classifier import DepthClassifier
from fairseq_sharing.sentence_depth.costs import Costs

SUFFIX = ".depth-classifier.json"

_ROWS = list_of(list_of(is_number))


def _is_cost(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and list_of(is_number)(value)


_SCHEMA: Schema = {
    "settings": (
        lambda value: list_of(mapping_of(is_count))(value) and len(value) > 1,
        "two or more depths, each with a number of layers per stack",
    ),
    "weight": (_ROWS, "a list of numbers per depth"),
    "bias": (list_of(is_number), "a number per depth"),
    "macs": (
        has_fields({"encoder": (_is_cost, ""), "settings": (list_of(_is_cost), "")}, ("encoder", "settings")),
        "two numbers for the encoder and for each depth",
    ),
    "checkpoint_sha256": (is_text, "text"),
    "training": (
        lambda value: isinstance(value, dict) and all(is_name(item) or is_quantity(item) for item in value.values()),
        "names and numbers",
    ),
}


def classifier_file(checkpoint: Path) -> Path:
    """Return the file of a checkpoint's classifier, beside the checkpoint."""
    return checkpoint.with_name(checkpoint.stem + SUFFIX)


def write_classifier(classifier: DepthClassifier, checkpoint: Path) -> Path:
    """Write the classifier of a checkpoint beside it, and return the file."""
    content = {
        "settings": list(classifier.settings),
        "training": classifier.training,
        "macs": {"encoder": list(classifier.costs.encoder), "settings": [list(c) for c in classifier.costs.settings]},
        "checkpoint_sha256": sha256(checkpoint),
        "bias": classifier.bias.tolist(),
        "weight": classifier.weight.tolist(),
    }
    file = classifier_file(checkpoint)
    write_text(file, json.dumps(content) + "\n")
    return file


def read_classifier(checkpoint: Path) -> DepthClassifier:
    """Read the classifier of a checkpoint. The file contains only numbers and text; reading it executes no code.

    Raises:
        SharingError: there is none, it is damaged, or the checkpoint has changed since it was trained.
    """
    file = classifier_file(checkpoint)
    command = f"fairseq-sharing autodepth {checkpoint} --penalty X"
    if not file.is_file():
        raise SharingError(f"--depth {AUTO}: {checkpoint} has no depth classifier; train one with: {command}")
    found = read_json(file, _SCHEMA, "a depth classifier", tuple(_SCHEMA))
    count = len(found["settings"])
    for name, rows in (("weight", found["weight"]), ("bias", found["bias"]), ("macs", found["macs"]["settings"])):
        if len(rows) != count:
            raise SharingError(f"{file}: not a depth classifier: {name} has {len(rows)} rows for {count} depths")
    if len({len(row) for row in found["weight"]}) > 1:
        raise SharingError(f"{file}: not a depth classifier: the rows of weight differ in length")
    if found["checkpoint_sha256"] != sha256(checkpoint):
        raise SharingError(f"{file}: was trained for another version of {checkpoint}; train it again with: {command}")
    encoder, settings = found["macs"]["encoder"], found["macs"]["settings"]
    return DepthClassifier(
        tuple(found["settings"]),
        torch.tensor(found["weight"], dtype=torch.float64),
        torch.tensor(found["bias"], dtype=torch.float64),
        Costs(tuple(encoder), tuple(tuple(cost) for cost in settings)),
        found["training"],
    )


def check_fit(classifier: DepthClassifier, model: Any, file: Path) -> None:
    """Check that a model has the depths and the width of a classifier.

    Raises:
        SharingError: it does not.
    """
    trained = model.depths.settings if getattr(model, "depths", None) else ()
    for setting in classifier.settings:
        if setting not in [dict(known) for known in trained]:
            allowed = ", ".join(map(describe, trained)) or "none"
            raise SharingError(
                f"{file}: chooses depth {describe(setting)}, which the model was not trained at; allowed: {allowed}"
            )
    width = model.encoder.cfg.encoder.embed_dim
    if classifier.weight.shape[1] != width:
        raise SharingError(
            f"{file}: has {classifier.weight.shape[1]} values per depth; allowed: {width}, the width of the encoder"
        )
