"""What may change in the configuration of a run when it is resumed."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.direction import KEYS
from fairseq_sharing.experiment.run_directory import RunDirectory

# Keys that may change when a run is resumed: how long it trains, what it keeps, how it reports. With any other
# change, the checkpoints of one run would come from two configurations. (How a batch is split over devices and
# steps may also change; the batch size is compared separately.) A name that ends in an underscore is a prefix.
CHANGEABLE = (
    "study",
    "map_of",
    "data",
    "tokens_per_batch",
    "train.max_epoch",
    "train.max_update",
    "train.stop_time_hours",
    "train.patience",
    "train.keep_",
    "train.no_epoch_checkpoints",
    "train.save_interval",
    "train.save_interval_updates",
    "train.validate_",
    "train.log_interval",
    "train.num_workers",
    "train.update_freq",
    "train.max_tokens",
    "evaluate",
)


def config_changes(old: DictConfig, new: DictConfig) -> dict[str, tuple[Any, Any]]:
    """Return the keys whose values differ, as ``key: (old, new)``; a missing key counts as null.

    Languages are ignored: they are those of the data, whether or not the configuration sets them.
    """
    before, after = _flatten(old), _flatten(new)
    for key in KEYS:
        before.pop(f"train.{key}", None)
        after.pop(f"train.{key}", None)
    return {
        key: (before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    }


def refuse_changed(run: RunDirectory, new: DictConfig) -> None:
    """Refuse to resume a run with a changed configuration.

    Raises:
        SharingError: a key has changed; the error names the key, its old value and its new value.
    """
    changes = {key: values for key, values in config_changes(run.config(), new).items() if not _changeable(key)}
    if changes:
        key, (old, now) = next(iter(changes.items()))
        more = f" (and {len(changes) - 1} more)" if len(changes) > 1 else ""
        raise SharingError(
            f"{run.path}: was started with {key}={_plain(old)}, now {_plain(now)}{more};"
            " use the old value, or another run directory with --out"
        )


def _changeable(key: str) -> bool:
    return any(key == name or key.startswith(name if name.endswith("_") else name + ".") for name in CHANGEABLE)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "unset" if value is None else str(value)


def _flatten(config: DictConfig) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, DictConfig):
            flat.update({f"{key!s}.{name}": item for name, item in _flatten(value).items()})
        else:
            flat[str(key)] = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return flat
