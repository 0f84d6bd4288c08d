"""Configurations of fairseq-hydra-train: check the options of a model and convert them to those of fairseq-train."""

from __future__ import annotations

import difflib
from argparse import Action, ArgumentParser, Namespace
from typing import Any

from fairseq.models import MODEL_REGISTRY
from omegaconf import DictConfig, OmegaConf

from fairseq_sharing.errors import SharingError

# Parts of a configuration whose _name is a flag of fairseq-train.
_CHOSEN = ("task", "criterion", "optimizer", "lr_scheduler")


def as_namespace(cfg: Any) -> Any:
    """Convert the model's part of a configuration to a Namespace; return a Namespace unchanged."""
    return Namespace(**_values(cfg)) if isinstance(cfg, DictConfig) else cfg


def flags_of(cfg: DictConfig, model: str) -> Namespace:
    """Collect the flags that fairseq-train would pass to a model.

    Args:
        cfg: the model's part of a configuration of fairseq-hydra-train.
        model: the registered model.

    Returns:
        The options of the model and of all other parts, for the model's checks of combinations.

    Raises:
        SharingError: an option of the model is unknown, or its value is not allowed.
    """
    given = _values(cfg)
    arch = given.pop("_name", None)
    _check(given, model)
    flags: dict[str, Any] = {}
    whole = cfg._get_root()
    for part in whole if whole is not cfg else ():
        options = whole[part]
        if isinstance(options, DictConfig) and options is not cfg:
            flags |= {key: value for key, value in _values(options).items() if key != "_name"}
            if part in _CHOSEN:
                flags[part] = options.get("_name")
    return Namespace(**{**flags, **given, "arch": arch})


def _values(cfg: DictConfig) -> dict[Any, Any]:
    values = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    assert isinstance(values, dict)
    return values


def _check(given: dict[str, Any], model: str) -> None:
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    MODEL_REGISTRY[model].add_args(parser)
    known = {action.dest: action for action in parser._actions}
    for name, value in given.items():
        if name not in known:
            nearest = difflib.get_close_matches(name, known, 1)
            allowed = f"nearest: {nearest[0]}" if nearest else "allowed: the flags of fairseq-train --arch " + model
            raise SharingError(f"model.{name}: unknown option; {allowed}")
        if value is not None and (wrong := _allowed_instead(known[name], value)):
            raise SharingError(f"model.{name}: {value!r}; allowed: {wrong}")


def _allowed_instead(action: Action, value: Any) -> str:
    """Say what an option allows if it does not allow a value."""
    if action.choices is not None:
        return "" if value in action.choices else ", ".join(map(str, action.choices))
    if action.nargs == 0:
        return "" if isinstance(value, bool) else "true, false"
    numbers: dict[Any, tuple[type, ...]] = {int: (int,), float: (int, float)}
    if action.type in numbers and (isinstance(value, bool) or not isinstance(value, numbers[action.type])):
        return "an integer" if action.type is int else "a number"
    return ""
