"""The direction of a translation: prepared data name it, and whatever else names one must agree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.layers import check_name

Direction = tuple[str, str]  # source and target language
KEYS = ("source_lang", "target_lang")


def direction_of(named: Mapping[str, Any], what: object) -> Direction | None:
    """Read both languages of a manifest, a run's record, a ``train`` block or a checkpoint's task.

    Args:
        named: may have ``source_lang`` and ``target_lang``.
        what: where they were read, for an error.

    Returns:
        The direction; None where one language is missing, as with the data of a language model.

    Raises:
        SharingError: a language that is no plain code.
    """
    source, target = (named.get(key) for key in KEYS)
    if not source or not target:
        return None
    return check_name(source, f"{what}: source_lang"), check_name(target, f"{what}: target_lang")


def inferred_direction(binarized: Path) -> Direction | None:
    """Infer the direction from the names of binarized files, as fairseq does where ``-s`` and ``-t`` are not given.

    Args:
        binarized: directory that fairseq-train reads.

    Returns:
        The direction; None where there is no such directory, or its files name no pair.
    """
    from fairseq.data.data_utils import infer_language_pair

    if not binarized.is_dir():
        return None
    return direction_of(dict(zip(KEYS, infer_language_pair(str(binarized)), strict=True)), binarized)


def refuse_other_languages(train: Mapping[str, Any], manifest: Mapping[str, Any], data: Path) -> None:
    """Refuse a ``train`` block that names other languages than the data.

    Raises:
        SharingError: naming the key and both languages.
    """
    for key in KEYS:
        said, has = train.get(key), manifest.get(key)
        if has and said is not None and said != has:
            raise SharingError(f"train.{key}: {said}; allowed: {has}, that of {data} (or leave the key out)")


def refuse_other_direction(trained: Direction | None, has: Direction | None, model: object, data: Path) -> None:
    """Refuse data of another direction than a model was trained in.

    Args:
        trained: the model's direction; None where it is not known.
        has: that of the data; None where they name none.
        model: what an error calls the model.
        data: the prepared data directory.

    Raises:
        SharingError: naming both directions.
    """
    if trained and has and trained != has:
        raise SharingError(
            f"{data}: translates {'-'.join(has)}; {model} was trained for {'-'.join(trained)}; "
            "allowed: data of that direction"
        )
