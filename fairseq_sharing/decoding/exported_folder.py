"""The folder of an exported model: what it may replace, and its manifest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from fairseq_sharing.decoding.model_files import ModelFiles
from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import sha256, write_text
from fairseq_sharing.preparation.manifest import MANIFEST, read_manifest


def refuse_other_content(output: Path, weights: str) -> None:
    """Refuse an output folder that contains something other than an exported model.

    Args:
        output: the folder; it may be missing or empty.
        weights: name of the file with the weights of an exported model.

    Raises:
        SharingError: the folder exists and is not an exported model.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not all((output / name).is_file() for name in (weights, MANIFEST)):
        raise SharingError(f"--output {output}: exists and is not an exported model; give another folder")


def write_manifest(folder: Path, files: ModelFiles, model: Any, *, preparation: bool) -> None:
    """Write the languages, limits, layer maps and checksums of an exported model, as in a data directory's manifest.

    Args:
        folder: the folder with all other files of the model.
        files: the exported model.
        model: fairseq's model.
        preparation: also write the text preparation, with the subword model.
    """
    manifest: dict[str, Any] = {f"{side}_lang": lang for side, lang in files.languages.items()}
    if preparation and files.manifest is not None:
        prepared = read_manifest(files.manifest, ("tokenizer", "subword"))
        manifest |= {"tokenizer": prepared["tokenizer"], "subword": prepared["subword"]}
        if subwords := prepared["subword"].get("model"):
            shutil.copyfile(files.manifest / subwords, folder / Path(subwords).name)
    source, target = model.max_positions()
    manifest |= {
        "max_tokens": {"source": source - 1, "target": target - 1},
        "layer_map": {stack: list(sharing.layer_map) for stack, sharing in getattr(model, "sharing", {}).items()},
        **({"depth": files.depth} if files.depth else {}),
        "sha256": {file.name: sha256(file) for file in sorted(folder.iterdir())},
    }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
