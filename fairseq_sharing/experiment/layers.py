"""The layers of a configuration: YAML files, their bases and overrides, each checked on its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fairseq_sharing import documents
from fairseq_sharing.errors import SharingError

TOP_LEVEL_KEYS = ("base", "run", "dataset", "data", "seed", "tokens_per_batch", "train", "evaluate")
BLOCKS = ("train", "evaluate")

# The origin of a layer, for errors, and its values.
Layer = tuple[str, DictConfig]


def load_layers(file: Path, seen: tuple[Path, ...] = ()) -> list[Layer]:
    """Load an experiment or a recipe and its bases, starting with the innermost base.

    Raises:
        SharingError: an unreadable file, an unknown key, a base that does not exist, or circular bases.
    """
    if file.resolve() in seen:
        raise SharingError(f"{file}: base: circular; allowed: bases that do not lead back to this file")
    config = read_yaml(file)
    check_names(config, TOP_LEVEL_KEYS, f"{file}: ")
    tidy_blocks(config, f"{file}: ")
    base = dict(items(config)).get("base")
    if base is None:
        return [(str(file), config)]
    del config.base
    base_file = file.parent / str(base)
    if not base_file.is_file():
        raise SharingError(f"{file}: base: {base}: no such file ({base_file})")
    return [*load_layers(base_file, (*seen, file.resolve())), (str(file), config)]


def read_yaml(file: Path) -> DictConfig:
    """Read a YAML file that must contain a mapping.

    Raises:
        SharingError: the file cannot be read, is not YAML, or does not contain a mapping.
    """
    content = documents.read_yaml(file)
    if not isinstance(content, dict):
        raise SharingError(f"{file}: must be a mapping of {', '.join(TOP_LEVEL_KEYS)}")
    return to_config(content, file)


def to_config(content: Any, name: object) -> DictConfig:
    """Convert a mapping to a configuration.

    Raises:
        SharingError: a key or an interpolation is malformed, or a value is missing.
    """
    # OmegaConf's mark of a missing value; a merge would silently ignore it.
    for field, value in documents.leaves(content):
        if value == "???":
            raise SharingError(f"{name}: {field}: '???'; allowed: a value")
    try:
        return OmegaConf.create(content)
    except OmegaConfBaseException as error:
        raise SharingError(f"{name}: {first_line(error)}") from error


def dotlist(overrides: Sequence[str]) -> DictConfig:
    """Read ``key=value`` overrides.

    Raises:
        SharingError: an override of another form, or an unknown key.
    """
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key.strip(".") or key.startswith("-"):
            raise SharingError(f"override {override!r}: must be key=value, for example train.max_epoch=3")
    try:
        for override in overrides:
            documents.load_yaml(override.partition("=")[2], f"override {override!r}")
        config = to_config(OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides))), "override")
    except (OmegaConfBaseException, YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, SharingError):
            raise
        raise SharingError(f"override {' '.join(overrides)!r}: {first_line(error)}") from error
    check_names(config, TOP_LEVEL_KEYS[1:], "override: ")
    tidy_blocks(config, "override: ")
    return config


def check_name(name: Any, what: str) -> str:
    """Check a name that is used as one segment of a path, and return it.

    Args:
        name: the name, as read from a file or a command line.
        what: its description in errors.

    Raises:
        SharingError: the name contains other characters, or starts with a dot or a dash.
    """
    if not documents.is_name(name):
        raise SharingError(f"{what}: {str(name)!r}; allowed: {documents.NAME}")
    return str(name)


def tidy_blocks(config: DictConfig, where: str) -> None:
    """Convert dashes in the keys of the blocks to underscores, so that later checks and merges see one spelling."""
    for block, content in items(config):
        if block not in BLOCKS:
            continue
        if not isinstance(content, dict):
            raise SharingError(f"{where}{block}: must be a mapping, got {content}")
        tidy: dict[str, Any] = {}
        for key, value in items(config[block]):
            name = key.replace("-", "_")
            if key.startswith("-"):
                nearest = key.lstrip("-").replace("-", "_")
                raise SharingError(f"{where}{block}.{key}: must not start with a dash; nearest: {nearest}")
            if name in tidy:
                raise SharingError(f"{where}{block}.{name}: given twice, with dashes and underscores")
            tidy[name] = value
        config[block] = tidy


def items(block: DictConfig) -> Iterator[tuple[str, Any]]:
    """Yield the keys and values of a block without resolving interpolations, which may refer to other layers."""
    plain = OmegaConf.to_container(block, resolve=False)
    assert isinstance(plain, dict)
    yield from ((str(key), value) for key, value in plain.items())


def check_names(config: DictConfig, allowed: Sequence[str], where: str) -> None:
    """Reject keys that are not allowed.

    Raises:
        SharingError: an unknown key; the error names the first one.
    """
    for key in config:
        if key not in allowed:
            raise SharingError(f"{where}unknown key {key!r}; allowed: {', '.join(allowed)}")


def first_line(error: BaseException) -> str:
    """Return the first line of an error message, or the name of the error."""
    return next(iter(str(error).splitlines()), type(error).__name__)
