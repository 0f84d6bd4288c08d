"""The translation direction. The prepared data define it; a configuration or checkpoint must agree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.layers import check_name

Direction = tuple[str, str]  # source and target language
KEYS = ("source_lang", "target_lang")


def direction_of(named: Mapping[str, Any], what: object) -> Direction | None:
    """Read both languages of a manifest, a run record, a ``train`` block or a checkpoint's task.

    Args:
        named: a mapping that may have ``source_lang`` and ``target_lang``.
        what: its name in errors.

    Returns:
        The direction; None if a language is missing, as in the data of a language model.

    Raises:
        SharingError: a language is not a plain language code.
    """
    source, target = (named.get(key) for key in KEYS)
    if not source or not target:
        return None
    return check_name(source, f"{what}: source_lang"), check_name(target, f"{what}: target_lang")


def inferred_direction(binarized: Path) -> Direction | None:
    """Infer the direction from the names of binarized files, as fairseq does without ``-s`` and ``-t``.

    Args:
        binarized: the data directory of fairseq-train.

    Returns:
        The direction; None if the directory does not exist or its file names contain no language pair.
    """
    from fairseq.data.data_utils import infer_language_pair

    if not binarized.is_dir():
        return None
    return direction_of(dict(zip(KEYS, infer_language_pair(str(binarized)), strict=True)), binarized)


def refuse_other_languages(train: Mapping[str, Any], manifest: Mapping[str, Any], data: Path) -> None:
    """Reject a ``train`` block whose languages differ from those of the data.

    Raises:
        SharingError: a language differs; the error names the key and both languages.
    """
    for key in KEYS:
        given, has = train.get(key), manifest.get(key)
        if has and given is not None and given != has:
            raise SharingError(f"train.{key}: {given}; allowed: {has}, the language of {data} (or omit the key)")


def refuse_other_direction(trained: Direction | None, has: Direction | None, model: object, data: Path) -> None:
    """Reject data whose direction differs from that of the model.

    Args:
        trained: the direction of the model; None if unknown.
        has: the direction of the data; None if unknown.
        model: the name of the model in errors.
        data: the prepared data directory.

    Raises:
        SharingError: the directions differ; the error names both.
    """
    if trained and has and trained != has:
        raise SharingError(
            f"{data}: direction {'-'.join(has)}; {model} was trained for {'-'.join(trained)}; "
            "allowed: data of that direction"
        )
