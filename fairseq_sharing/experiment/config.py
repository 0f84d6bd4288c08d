"""Compose an experiment's configuration and turn its ``train`` block into flags of ``fairseq-train``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
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
BLOCKS = ("train", "evaluate")
# Flags of fairseq-train that the launcher gives.
SET_ELSEWHERE = {
    "seed": "the top-level key seed",
    "data": "the top-level key data",
    **dict.fromkeys(("save_dir", "tensorboard_logdir", "user_dir", "log_format", "log_file"), "the run directory"),
    **dict.fromkeys(
        (
            *("distributed_world_size", "distributed_num_procs", "distributed_rank", "distributed_init_method"),
            *("distributed_port", "distributed_no_spawn", "nprocs_per_node", "device_id", "local_rank"),
        ),
        "--devices, --nodes and --master",
    ),
}
_NAME = re.compile(r"(?![.-])[\w.-]+")
DEFAULTS = {"seed": 1, "train": {}, "evaluate": {}}


def compose(path: Path | str, overrides: Sequence[str] = (), *, check_flags: bool = False) -> DictConfig:
    """Merge an experiment with its base (first) and with overrides (last).

    Keys of ``train`` and ``evaluate`` may be spelled with dashes; they come out with underscores.

    Args:
        path: the experiment's YAML file; a path that isn't there is looked up among the package's own
            configurations (``toy/cycle_rev.yaml``).
        overrides: ``key=value`` words such as ``train.max_epoch=3`` or ``seed=2``.
        check_flags: also check the ``train`` block against the parser of ``fairseq-train``, which imports fairseq.

    Returns:
        The configuration, resolved, with ``run``, ``dataset``, ``seed``, ``train`` and ``evaluate`` present.

    Raises:
        SharingError: for a missing or unreadable file, an unknown key, a value that is not allowed, or a malformed
            override.
    """
    file = find_config(path)
    layers = [*_layers(file), ("override", _dotlist(overrides))]
    try:
        config = OmegaConf.merge(DEFAULTS, {"run": file.stem}, *(layer for _, layer in layers))
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        raise SharingError(f"{file}: {_first_line(error)}") from error
    assert isinstance(config, DictConfig)
    _check(config, file, layers)
    if check_flags:
        _check_flags(config, layers)
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


def check_name(name: Any, what: str) -> str:
    """Return a name that is to be one segment of a path.

    Args:
        name: the name, as read from a file or a command line.
        what: what an error calls it.

    Raises:
        SharingError: it has other characters, or begins with a dot or a dash.
    """
    if not _NAME.fullmatch(str(name)):
        raise SharingError(
            f"{what}: {str(name)!r}; allowed: letters, digits and . _ - (neither . nor - at the beginning)"
        )
    return str(name)


def fairseq_arguments(train: Mapping[str, Any]) -> list[str]:
    """Turn a ``train`` block into the words of a ``fairseq-train`` command line; imports fairseq.

    Args:
        train: flag names with underscores for dashes, and their values. Null leaves a flag out. A switch is given
            when its value, true or false, is the one that the flag sets. A list is one word, with commas or as a Python
            literal, whichever the flag reads; a mapping is JSON.

    Returns:
        The words, in the order of the block.

    Raises:
        SharingError: an unknown key, or a value that its flag does not take.
    """
    from fairseq_sharing.training import flags

    return flags.words(train)


def flag_words(flag: str, value: object) -> list[str]:
    """Return a flag and its value as words of a command line, in one word if the value looks like a flag."""
    return [f"{flag}={value}"] if str(value).startswith("-") else [flag, str(value)]


def path_word(path: Path) -> str:
    """Return a path as a word of a command line that is never taken for a flag."""
    return f"./{path}" if str(path).startswith("-") else str(path)


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


def _layers(file: Path, seen: tuple[Path, ...] = ()) -> list[tuple[str, DictConfig]]:
    """Load an experiment and its bases, the last base first, each with the name of its file."""
    if file.resolve() in seen:
        raise SharingError(f"{file}: base leads back to itself")
    try:
        config = OmegaConf.load(file)
    except (YAMLError, UnicodeDecodeError, OSError) as error:
        raise SharingError(f"{file}: not readable as YAML: {_first_line(error)}") from error
    if not isinstance(config, DictConfig):
        raise SharingError(f"{file}: must be a mapping of {', '.join(TOP_LEVEL_KEYS)}")
    _check_names(config, TOP_LEVEL_KEYS, f"{file}: ")
    _tidy_blocks(config, f"{file}: ")
    base = config.pop("base", None)
    if base is None:
        return [(str(file), config)]
    base_file = file.parent / str(base)
    if not base_file.is_file():
        raise SharingError(f"{file}: base: {base}: no such file ({base_file})")
    return [*_layers(base_file, (*seen, file.resolve())), (str(file), config)]


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
    _tidy_blocks(config, "override: ")
    return config


def _check(config: DictConfig, file: Path, layers: Sequence[tuple[str, DictConfig]]) -> None:
    _check_names(config.evaluate, EVALUATE_KEYS, f"{file}: evaluate: ")
    if not config.get("dataset"):
        raise SharingError(f"{file}: dataset: missing; the name of a data directory's recipe, for example multi30k")
    config.dataset = check_name(config.dataset, f"{file}: dataset")
    check_name(config.run, f"{file}: run")
    if config.evaluate.get("baseline") is not None:
        check_name(config.evaluate.baseline, f"{file}: evaluate.baseline")
    if isinstance(config.seed, bool) or not isinstance(config.seed, int) or config.seed < 0:
        raise SharingError(f"{file}: seed: must be a whole number from 0, got {config.seed!r}")
    for name in ("max_epoch", "max_update", "max_tokens", "patience"):
        value = config.train.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise SharingError(f"{_origin(layers, name)}: train.{name}: must be a whole number from 0, got {value!r}")
    for name, owner in SET_ELSEWHERE.items():
        if name in config.train:
            raise SharingError(f"{_origin(layers, name)}: train.{name}: is set by {owner}, not here")


def _check_flags(config: DictConfig, layers: Sequence[tuple[str, DictConfig]]) -> None:
    """Check the ``train`` block against fairseq's parser."""
    from fairseq_sharing.training import flags

    removed = {key for _, layer in layers for key, value in layer.get("train", {}).items() if value is not None}
    try:
        flags.parse(config.train)
        # A null that removes what a base says may name a flag of another architecture; any other is a mistake.
        flags.check_known(config.train, [key for key in config.train if key not in removed])
    except flags.BadKeyError as error:
        raise SharingError(f"{_origin(layers, error.key)}: {error}") from error
    except SharingError as error:
        raise SharingError(f"{layers[-2][0]}: {error}") from error


def _origin(layers: Sequence[tuple[str, DictConfig]], key: str) -> str:
    """Name the file, or the override, that has the last word on a key of the ``train`` block."""
    return next(name for name, layer in reversed(layers) if key in layer.get("train", {}))


def _tidy_blocks(config: DictConfig, where: str) -> None:
    """Spell the keys of the blocks with underscores, so that later checks and merges see one spelling only."""
    for block in BLOCKS:
        if block not in config:
            continue
        if not isinstance(config[block], DictConfig):
            raise SharingError(f"{where}{block}: must be a mapping, got {config[block]}")
        tidy: dict[str, Any] = {}
        for key, value in _items(config[block]):
            name = key.replace("-", "_")
            if key.startswith("-"):
                nearest = key.lstrip("-").replace("-", "_")
                raise SharingError(f"{where}{block}.{key}: must not begin with a dash; nearest: {nearest}")
            if name in tidy:
                raise SharingError(f"{where}{block}.{name}: given twice, with dashes and with underscores")
            tidy[name] = value
        config[block] = tidy


def _items(block: DictConfig) -> Iterator[tuple[str, Any]]:
    plain = OmegaConf.to_container(block, resolve=False)
    assert isinstance(plain, dict)
    yield from ((str(key), value) for key, value in plain.items())


def _check_names(config: DictConfig, allowed: Sequence[str], where: str) -> None:
    for key in config:
        if key not in allowed:
            raise SharingError(f"{where}unknown key {key!r}; allowed: {', '.join(allowed)}")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
