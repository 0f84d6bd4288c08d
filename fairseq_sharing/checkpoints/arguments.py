"""Read the arguments of model and task from a checkpoint as plain dicts."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any


def model_arguments(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the model in a checkpoint as a plain dict."""
    cfg = checkpoint.get("cfg")
    return plain((cfg.get("model") if cfg else checkpoint.get("args")) or {})


def with_model_arguments(checkpoint: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint with other arguments of the model."""
    made = Namespace(**arguments)
    if cfg := checkpoint.get("cfg"):
        return {**checkpoint, "cfg": {**cfg, "model": made}}
    return {**checkpoint, "args": made}


def task_arguments(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the task in a checkpoint as a plain dict."""
    cfg = checkpoint.get("cfg")
    return plain(cfg["task"] if cfg else checkpoint.get("args") or {})


def seed(checkpoint: Mapping[str, Any]) -> int:
    """Return the seed of the training in a checkpoint."""
    cfg = checkpoint.get("cfg")
    return int(plain(cfg["common"] if cfg else checkpoint.get("args") or {}).get("seed", 1))


def plain(value: Any) -> Any:
    """Convert Namespaces in a configuration to dicts, which any loader can read."""
    if hasattr(value, "__dict__"):
        value = vars(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
