"""What differs between the training recipes of rows, from their recorded commands."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fairseq_sharing.reporting.results import Row

# Differences that other columns show, or that do not affect what a model learns.
_OTHERWISE_SHOWN = re.compile(
    r"(encoder-|decoder-)?(sharing|unique-layers|layer-map|layers|sharing-scope)"
    r"|sharing-schedule|(unshare|dynamic|replay|tied|untied)-.*|freeze-pattern-at"
    r"|task|seed|user-dir|save-dir|tensorboard-logdir|log-.*|restore-file|finetune-from-model"
    r"|cpu|distributed-.*|ddp-.*|device-id|num-workers.*|max-tokens|update-freq|max-tokens-valid|data-buffer-size"
    r"|no-progress-bar|disable-validation|save-interval.*|keep-.*|no-epoch-checkpoints"
)
# Sizes of MoEUT's banks: the model's name already says that other rows lack them.
_BANKS = re.compile(
    r"(head|rotary|expert)-dim|(encoder-|decoder-)?(ffn|attention)-(experts|top-k|entropy)|expert-.*|entropy-scope"
)
_NAMES = {"embed-dim": "width", "ffn-embed-dim": "FFN width", "attention-heads": "heads"}

_LONGEST = 40  # characters of a value
_UNUSUAL = object()

Settings = dict[str, str | None]


def differences(rows: Sequence[Row]) -> list[str]:
    """Name the settings of each row that most rows lack, apart from sharing, M, N, seed and paths.

    Args:
        rows: the experiments.

    Returns:
        For each row, such as ``Admin, width 128``; empty if all its settings are common.
    """
    settings = [_settings(row.results[0]) for row in rows]
    names = dict.fromkeys(name for one in settings if one is not None for name in one)
    known = [one for one in settings if one is not None]
    varying = {name: _usual(name, known) for name in names if _varies(name, known)}
    return ["unknown" if one is None else ", ".join(_shown(one, varying)) for one in settings]


def unequal_seeds(rows: Sequence[Row]) -> list[str]:
    """Describe rows whose seeds were trained, averaged or decoded with different settings."""
    found = []
    for row in rows:
        settings = [_settings(result) or {} for result in row.results]
        names = dict.fromkeys(name for one in settings for name in one)
        varying = [name for name in names if _varies(name, settings)]
        if varying:
            found.append(f"Warning: the seeds of {row.run} differ in: {', '.join(map(_label, varying))}.")
    return found


def _varies(name: str, settings: Sequence[Settings]) -> bool:
    present = {one[name] for one in settings if name in one}
    everywhere = all(name in one for one in settings) or _BANKS.fullmatch(name)
    return len(present) > 1 or not everywhere


def _usual(name: str, settings: Sequence[Settings]) -> object:
    """Return the value that most rows have of a setting that all rows have; otherwise an object unlike any value."""
    ((value, count),) = Counter(one.get(name) for one in settings).most_common(1)
    return value if all(name in one for one in settings) and 2 * count > len(settings) else _UNUSUAL


def _shown(settings: Settings, usual: Mapping[str, object]) -> list[str]:
    found = []
    for name, common in usual.items():
        if name not in settings or settings[name] == common:
            continue
        value = settings[name]
        found.append(_label(name) if value in (None, "profile") else f"{_label(name)} {_plain(value)}")
    return found


def _plain(text: object) -> str:
    """Replace characters that Markdown, LaTeX or HTML could interpret, and shorten long values such as paths."""
    return re.sub(r"[^\w .,:()+-]", "?", str(text))[:_LONGEST]


def _label(name: str) -> str:
    name = _plain(name)
    stack, dash, rest = name.partition("-")
    if name == "admin":
        return "Admin"
    if dash and stack in ("encoder", "decoder"):
        return f"{stack} {_NAMES.get(rest, rest)}"
    return _NAMES.get(name, name)


def _settings(result: Mapping[str, Any]) -> Settings | None:
    """Read the flags of a recorded command and how it was decoded; None if no command is recorded."""
    if not result.get("command"):
        return None
    flags: Settings = {}
    name = None
    for word in result["command"]:
        if re.match(r"--[a-z]", word):
            name, equals, value = word.removeprefix("--").partition("=")
            flags[name] = value if equals else None
        elif name is not None:
            flags[name] = word if flags[name] is None else f"{flags[name]} {word}"
    batch = [float(flags.get(name) or 1) for name in ("max-tokens", "update-freq", "distributed-world-size")]
    flags["tokens per batch"] = f"{math.prod(batch):,.0f}" if "max-tokens" in flags else None
    flags = {name: value for name, value in flags.items() if not _OTHERWISE_SHOWN.fullmatch(name)}
    search = result.get("generation") or {}
    averaged = (result.get("checkpoint") or {}).get("averaged")
    decoding = {"averaged checkpoints": averaged and len(averaged), **{n: search.get(n) for n in ("beam", "lenpen")}}
    flags.update({name: str(value) for name, value in decoding.items() if value is not None})
    return _merge_stacks(flags)


def _merge_stacks(flags: Settings) -> Settings:
    """Replace equal flags of encoder and decoder by one."""
    merged = dict(flags)
    for name in flags:
        rest = name.removeprefix("encoder-")
        other = f"decoder-{rest}"
        if rest != name and other in flags and flags[other] == flags[name]:
            merged[rest] = merged.pop(name)
            del merged[other]
    return merged
