"""Compose an experiment's configuration and turn its ``train`` block into flags of ``fairseq-train``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fairseq_sharing.errors import SharingError
from fairseq_sharing.resources import configs_dir

TOP_LEVEL_KEYS = ("base", "run", "dataset", "data", "seed", "tokens_per_batch", "train", "evaluate")
EVALUATE_KEYS = (
    *("average_last", "beam", "lenpen", "max_tokens", "baseline", "test_lenpen"),
    *("max_len_a", "max_len_b", "compound_split"),
)
# Flags of fairseq-train that the launcher gives.
SET_ELSEWHERE = {
    "seed": "the top-level key seed",
    "distributed_world_size": "--devices",
    **dict.fromkeys(("save_dir", "tensorboard_logdir", "user_dir", "log_format", "log_file"), "the run directory"),
}
DEFAULTS = {"seed": 1, "train": {}, "evaluate": {}}


def compose(path: Path | str, overrides: Sequence[str] = ()) -> DictConfig:
    """Merge an experiment with its base (first) and with overrides (last).

    Args:
        path: the experiment's YAML file; a path that isn't there is looked up among the package's own
            configurations (``toy/cycle_rev.yaml``).
        overrides: ``key=value`` words such as ``train.max_epoch=3`` or ``seed=2``.

    Returns:
        The configuration, resolved, with ``run``, ``dataset``, ``seed``, ``train`` and ``evaluate`` present.

    Raises:
        SharingError: for a missing or unreadable file, an unknown key, or a malformed override.
    """
    file = find_config(path)
    try:
        config = OmegaConf.merge(
            DEFAULTS, {"run": file.stem}, _load_with_base(file), OmegaConf.create(_dotlist(overrides))
        )
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        raise SharingError(f"{file}: {_first_line(error)}") from error
    assert isinstance(config, DictConfig)
    _check(config, file)
    return config


def find_config(path: Path | str) -> Path:
    """Return the configuration file that a path names, from here or from the package's own configurations.

    Raises:
        SharingError: when neither has it.
    """
    path = Path(path)
    if path.is_file():
        return path
    parts = path.parts[1:] if path.parts[:1] == ("configs",) else path.parts
    for own in (configs_dir().joinpath(*parts), configs_dir().joinpath(*parts).with_suffix(".yaml")):
        if not path.is_absolute() and own.is_file():
            return own
    raise SharingError(f"configuration {path}: no such file, here or in {configs_dir()}")


def fairseq_arguments(train: Mapping[str, Any]) -> list[str]:
    """Turn a ``train`` block into the words of a ``fairseq-train`` command line.

    Args:
        train: flag names with underscores for dashes, and their values: true is a bare flag, false and null
            leave the flag out, a list is several words, a mapping is JSON.

    Returns:
        The words, in the order of the block.
    """
    words: list[str] = []
    for key, value in train.items():
        if value is None or value is False:
            continue
        words.append("--" + str(key).replace("_", "-"))
        if value is True:
            continue
        if isinstance(value, Mapping):
            plain = OmegaConf.to_container(value) if isinstance(value, DictConfig) else dict(value)
            words.append(json.dumps(plain))
        elif isinstance(value, Sequence) and not isinstance(value, str):
            words.extend(str(item) for item in value)
        else:
            words.append(str(value))
    return words


def update_freq(config: DictConfig, devices: int) -> int | str | None:
    """Return the ``update_freq`` that gives the configuration's ``tokens_per_batch`` on this many devices.

    Tokens per batch = max_tokens (per device and step) x devices x update_freq. Without ``tokens_per_batch``
    the ``train`` block's own ``update_freq`` stands.

    Raises:
        SharingError: when no whole number of steps gives it, or ``tokens_per_batch`` and ``update_freq`` are
            both set.
    """
    wanted, train = config.get("tokens_per_batch"), config.train
    if wanted is None:
        return train.get("update_freq")
    if train.get("update_freq") is not None:
        raise SharingError("tokens_per_batch and train.update_freq are both set: give one of them")
    max_tokens = train.get("max_tokens")
    if not isinstance(max_tokens, int) or max_tokens < 1:
        raise SharingError(f"tokens_per_batch needs train.max_tokens, tokens per device and step; got {max_tokens}")
    if not isinstance(wanted, int) or wanted < 1 or wanted % (max_tokens * devices):
        raise SharingError(
            f"tokens_per_batch={wanted} is no multiple of train.max_tokens={max_tokens} x {devices} devices"
            f" = {max_tokens * devices}: change one of the three"
        )
    return wanted // (max_tokens * devices)


def tokens_per_batch(config: DictConfig, devices: int) -> int | None:
    """Return the most tokens one update sees over all devices; None when batches are counted in sentences."""
    max_tokens, steps = config.train.get("max_tokens"), update_freq(config, devices) or 1
    if not isinstance(max_tokens, int) or not str(steps).isdigit():
        return None
    return max_tokens * devices * int(steps)


def _load_with_base(file: Path, seen: tuple[Path, ...] = ()) -> DictConfig:
    if file.resolve() in seen:
        raise SharingError(f"{file}: base leads back to itself")
    try:
        config = OmegaConf.load(file)
    except (YAMLError, UnicodeDecodeError, OSError) as error:
        raise SharingError(f"{file}: not readable as YAML: {_first_line(error)}") from error
    if not isinstance(config, DictConfig):
        raise SharingError(f"{file}: must be a mapping of {', '.join(TOP_LEVEL_KEYS)}")
    _check_names(config, TOP_LEVEL_KEYS, f"{file}: ")
    _check_blocks(config, f"{file}: ")
    base = config.pop("base", None)
    if base is None:
        return config
    base_file = file.parent / str(base)
    if not base_file.is_file():
        raise SharingError(f"{file}: base: {base}: no such file ({base_file})")
    merged = OmegaConf.merge(_load_with_base(base_file, (*seen, file.resolve())), config)
    assert isinstance(merged, DictConfig)
    return merged


def _dotlist(overrides: Sequence[str]) -> DictConfig:
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key.strip(".") or key.startswith("-"):
            raise SharingError(f"override {override!r}: must be key=value, for example train.max_epoch=3")
    try:
        config = OmegaConf.from_dotlist(list(overrides))
    except (OmegaConfBaseException, YAMLError) as error:
        raise SharingError(f"override {' '.join(overrides)!r}: {_first_line(error)}") from error
    _check_names(config, TOP_LEVEL_KEYS[1:], "override: ")
    _check_blocks(config, "override: ")
    return config


def _check(config: DictConfig, file: Path) -> None:
    _check_names(config.evaluate, EVALUATE_KEYS, f"{file}: evaluate: ")
    if not config.get("dataset"):
        raise SharingError(f"{file}: dataset: missing; the name of a data directory's recipe, for example multi30k")
    if not isinstance(config.seed, int) or config.seed < 0:
        raise SharingError(f"{file}: seed: must be a whole number from 0, got {config.seed!r}")
    for name in ("max_epoch", "max_update", "max_tokens", "patience"):
        value = config.train.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise SharingError(f"{file}: train.{name}: must be a whole number from 0, got {value!r}")
    for name, owner in SET_ELSEWHERE.items():
        if name in config.train:
            raise SharingError(f"{file}: train.{name}: is set by {owner}, not here")


def _check_blocks(config: DictConfig, where: str) -> None:
    for block in ("train", "evaluate"):
        if block in config and not isinstance(config[block], DictConfig):
            raise SharingError(f"{where}{block}: must be a mapping, got {config[block]}")


def _check_names(config: DictConfig, allowed: Sequence[str], where: str) -> None:
    for key in config:
        if key not in allowed:
            raise SharingError(f"{where}unknown key {key!r}; allowed: {', '.join(allowed)}")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
