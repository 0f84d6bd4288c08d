"""Compose the configuration of an experiment from a YAML file and its bases, or a row of a study, and overrides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fairseq_sharing.documents import is_count
from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.layers import (
    Layer,
    check_name,
    check_names,
    dotlist,
    first_line,
    items,
    load_layers,
    read_yaml,
)
from fairseq_sharing.experiment.study import Study, is_study, read_study
from fairseq_sharing.resources import configs_dir

EVALUATE_KEYS = (
    *("average_last", "engine", "beam", "lenpen", "max_tokens", "test_lenpen", "max_len_a", "max_len_b"),
    *("compound_split", "tokenize", "tokens_per_sample", "context_window"),
)
# Flags of fairseq-train that the launcher sets.
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
DEFAULTS = {"seed": 1, "train": {}, "evaluate": {}}
MAX_SEED = 2**31 - 1  # numpy's largest seed, with room for the updates that fairseq adds to it
_ROW = "row="

# Checks a train block; the second argument lists the keys that have a value in some layer, which a null may remove.
CheckFlags = Callable[[Mapping[str, Any], Sequence[str]], None]


class BadKeyError(SharingError):
    """A key of a ``train`` block that ``fairseq-train`` would reject or misread.

    Args:
        key: the key.
        message: the reason.
    """

    def __init__(self, key: str, message: str):
        super().__init__(f"train.{key}: {message}")
        self.key = key


def compose(path: Path | str, overrides: Sequence[str] = (), *, check: CheckFlags | None = None) -> DictConfig:
    """Merge the bases of an experiment, the experiment itself and the overrides, in this order.

    Keys of ``train`` and ``evaluate`` may be spelled with dashes; they are converted to underscores.

    Args:
        path: the YAML file of an experiment or a study. If the file does not exist, the package's own
            configurations are searched (``studies/toy.yaml``, or ``toy`` for short).
        overrides: ``key=value`` words such as ``train.max_epoch=3`` or ``seed=2``; a study also needs ``row=NAME``.
        check: checks the ``train`` block, as ``flags.check`` does against the parser of ``fairseq-train``.

    Returns:
        The resolved configuration, with ``run``, ``dataset``, ``seed``, ``train`` and ``evaluate``, and for a study
        also ``study``.

    Raises:
        SharingError: a missing or unreadable file, an unknown key, a value that is not allowed, or a malformed
            override.
    """
    file = find_config(path)
    words = list(overrides)
    study = None
    if is_study(read_yaml(file)):
        study = read_study(file)
        row, words = take_row(study, words)
        layers = study.layers(row)
    else:
        layers = [(str(file), OmegaConf.create({"run": file.stem})), *load_layers(file)]
    layers.append(("override", dotlist(words)))
    try:
        config = OmegaConf.merge(DEFAULTS, *(layer for _, layer in layers))
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        raise SharingError(f"{file}: {first_line(error)}") from error
    assert isinstance(config, DictConfig)
    if study is not None and config.dataset != study.data.name:
        del config.study  # with other data the run is not part of the study
    _check(config, file, layers)
    if check is not None:
        _check_flags(config, layers, check)
    return config


def take_row(study: Study, words: Sequence[str]) -> tuple[str, list[str]]:
    """Split ``row=NAME`` from the other overrides of a study.

    Raises:
        SharingError: no row is given, or more than one.
    """
    rows = [word.removeprefix(_ROW) for word in words if word.startswith(_ROW)]
    if len(rows) != 1:
        given = ", ".join(rows) or "none"
        raise SharingError(f"{study.file}: row=NAME must be given once, got {given}; rows: {', '.join(study.rows)}")
    return rows[0], [word for word in words if not word.startswith(_ROW)]


def find_study(path: Path | str) -> Study:
    """Read a study given by path or name, from the current directory or the package's own studies.

    Raises:
        SharingError: the study does not exist, or the file is a single experiment.
    """
    file = find_config(path)
    if not is_study(read_yaml(file)):
        raise SharingError(f"{file}: a single experiment; allowed: a study, which has rows")
    return read_study(file)


def find_config(path: Path | str) -> Path:
    """Find a configuration file in the current directory or among the package's own configurations.

    Raises:
        SharingError: the file does not exist in either.
    """
    path = Path(path)
    if path.is_file():
        return path
    parts = path.parts[1:] if path.parts[:1] == ("configs",) else path.parts
    own = configs_dir()
    for place in (own.joinpath(*parts), own.joinpath(*parts).with_suffix(".yaml"), own / "studies" / f"{path}.yaml"):
        if not path.is_absolute() and ".." not in parts and place.is_file():
            return place
    studies = ", ".join(sorted(file.stem for file in (own / "studies").glob("*.yaml")))
    raise SharingError(f"configuration {path}: no such file in the current directory or {own}; studies: {studies}")


def update_freq(config: DictConfig, devices: int) -> int | str | None:
    """Return the ``update_freq`` that yields the configured ``tokens_per_batch`` on the given number of devices.

    Tokens per batch = max_tokens (per device and step) x devices x update_freq. Without ``tokens_per_batch``,
    ``update_freq`` of the ``train`` block is used.

    Raises:
        SharingError: no integer ``update_freq`` yields ``tokens_per_batch``, or both are set.
    """
    wanted, train = config.get("tokens_per_batch"), config.train
    if wanted is None:
        return train.get("update_freq")
    if train.get("update_freq") is not None:
        raise SharingError("tokens_per_batch and train.update_freq: both are set; allowed: one of them")
    max_tokens = train.get("max_tokens")
    if not isinstance(max_tokens, int) or max_tokens < 1:
        raise SharingError(f"tokens_per_batch needs train.max_tokens (tokens per device and step), got {max_tokens}")
    if not isinstance(wanted, int) or wanted < 1 or wanted % (max_tokens * devices):
        raise SharingError(
            f"tokens_per_batch={wanted}: not a multiple of train.max_tokens={max_tokens} x {devices} devices"
            f" = {max_tokens * devices}; change one of the three"
        )
    return wanted // (max_tokens * devices)


def tokens_per_batch(config: DictConfig, devices: int) -> int | None:
    """Return the maximum tokens per update over all devices; None if batches are counted in sentences."""
    max_tokens, steps = config.train.get("max_tokens"), update_freq(config, devices) or 1
    if not isinstance(max_tokens, int) or not str(steps).isdigit():
        return None
    return max_tokens * devices * int(steps)


def _check(config: DictConfig, file: Path, layers: Sequence[Layer]) -> None:
    check_names(config.evaluate, EVALUATE_KEYS, f"{file}: evaluate: ")
    if not config.get("dataset"):
        raise SharingError(f"{file}: dataset: missing; allowed: the name of a data recipe, for example multi30k")
    config.dataset = check_name(config.dataset, f"{file}: dataset")
    check_name(config.run, f"{file}: run")
    if not is_count(config.seed) or config.seed > MAX_SEED:
        raise SharingError(f"{file}: seed: must be a whole number from 0, got {config.seed!r}; at most {MAX_SEED}")
    if config.get("data") is not None and not isinstance(config.data, str):
        raise SharingError(f"{file}: data: must be a path, got {config.data!r}")
    for name in ("max_epoch", "max_update", "max_tokens", "patience"):
        value = config.train.get(name)
        if value is not None and not is_count(value):
            raise SharingError(f"{_origin(layers, name)}: train.{name}: must be a whole number from 0, got {value!r}")
    for name, owner in SET_ELSEWHERE.items():
        if name in config.train:
            raise SharingError(f"{_origin(layers, name)}: train.{name}: is set by {owner}, not here")


def _check_flags(config: DictConfig, layers: Sequence[Layer], check: CheckFlags) -> None:
    """Check the ``train`` block against fairseq's parser; an error names the file of the key."""
    given = {key for _, layer in layers for key, value in _train(layer).items() if value is not None}
    try:
        check(config.train, [key for key in config.train if key in given])
    except BadKeyError as error:
        raise SharingError(f"{_origin(layers, error.key)}: {error}") from error
    except SharingError as error:
        raise SharingError(f"{layers[-2][0]}: {error}") from error


def _origin(layers: Sequence[Layer], key: str) -> str:
    """Return the name of the last layer, a file or the overrides, that sets a key of the ``train`` block."""
    return next((name for name, layer in reversed(layers) if key in _train(layer)), layers[-2][0])


def _train(layer: DictConfig) -> dict[str, Any]:
    return dict(items(layer.train)) if "train" in layer else {}
