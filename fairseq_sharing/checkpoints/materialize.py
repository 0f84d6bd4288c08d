"""Convert a checkpoint of this package to one of stock fairseq."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from fairseq_sharing.adapters.effective import merge_state
from fairseq_sharing.checkpoints.arguments import model_arguments, plain
from fairseq_sharing.checkpoints.finite_weights import refuse_nonfinite_weights
from fairseq_sharing.checkpoints.recorded_state import EXTRA_STATE, recorded_extra, recorded_sharing
from fairseq_sharing.checkpoints.sharing_state import layer_aliases
from fairseq_sharing.checkpoints.stock_model import refuse_unfit
from fairseq_sharing.errors import SharingError
from fairseq_sharing.options import flag_of

# Prefix of the names of this package's faster losses and optimizers, followed by fairseq's own name.
FUSED = "fused_"
_SHARING_OPTION = re.compile(
    r"((encoder|decoder)_)?(sharing|unique_layers|layer_map|sharing_scope|component_sharing)|cross_stack_sharing|preset|"
    r"precision|fast|compile|"
    r"admin|depth_signal|position_per_depth|act|act_epsilon|"
    r"(encoder|decoder)_no_ffn|embedding_factor_dim|deepnorm|b2t|"
    r"((encoder|decoder)_)?depths|depth_sampling|depth_full_share|depth_loss|"
    r"depth_(lora|lora_of|scale|bias|norm)|teacher|teacher_data|kd_alpha|kd_temperature"
)
# Structures that stock fairseq lacks -> where they can be exported to, if anywhere.
_STRUCTURES = {
    **dict.fromkeys(("encoder_no_ffn", "decoder_no_ffn", "embedding_factor_dim", "deepnorm"), "--to ctranslate2"),
    **dict.fromkeys(("b2t", "position_per_depth"), ""),
}


def materialize(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Convert a checkpoint to one of stock fairseq's ``transformer``: all N layers, plain dicts only.

    Args:
        checkpoint: the result of ``load_checkpoint``; it is not modified.

    Returns:
        The stock checkpoint, without optimizer state. Tied layers still share storage, so the file does not grow,
        except for matrices that differ by depth because of their adapters or factors.

    Raises:
        SharingError: the model is not a transformer_sharing model or has parts that stock fairseq lacks, or its
            weights are NaN, infinite or do not match the model's arguments.
    """
    model_args = model_arguments(checkpoint)
    arch = str(model_args.get("arch", ""))
    if not arch.startswith("transformer_sharing"):
        raise SharingError(f"--materialize requires a transformer_sharing model, got {arch or 'an unknown one'}")
    for option in ("admin", "depth_signal", "act"):
        if model_args.get(option, "off") != "off":
            flag = f"{flag_of(option)} {model_args[option]}"
            allowed = "; allowed: --to ctranslate2" if option == "admin" else ""
            raise SharingError(
                f"--materialize cannot write a model with {flag}: stock fairseq has no such layers{allowed}"
            )
    for option, elsewhere in _STRUCTURES.items():
        if value := model_args.get(option):
            flag = flag_of(option) + ("" if value is True else f" {value}")
            allowed = f"; allowed: {elsewhere}" if elsewhere else ""
            raise SharingError(
                f"--materialize cannot write a model with {flag}: stock fairseq has no such option{allowed}"
            )
    state = dict(checkpoint["model"])
    refuse_nonfinite_weights(state)
    aliases = {**recorded_extra(state).get("aliases", {}), **layer_aliases(state, recorded_sharing(state))}
    state.pop(EXTRA_STATE, None)
    for name, owner in aliases.items():
        state[name] = state[owner]
    state = merge_state(state)
    plain_args = {key: value for key, value in model_args.items() if not _SHARING_OPTION.fullmatch(key)}
    stock = arch.replace("transformer_sharing", "transformer")
    plain_args.update(arch=stock, _name=stock, user_dir=None)
    cfg = plain(checkpoint["cfg"])
    cfg["common"] = {**cfg.get("common", {}), "user_dir": None}
    for part in ("task", "criterion", "optimizer"):
        if name := (cfg.get(part) or {}).get("_name"):
            options = {key: value for key, value in cfg[part].items() if not _SHARING_OPTION.fullmatch(key)}
            cfg[part] = {**options, "_name": _stock_name(name)}
            plain_args[part] = _stock_name(name)
    refuse_unfit(plain_args, state)
    cfg["model"] = _with_attributes({**(cfg.get("task") or {}), **plain_args})
    kept: dict[str, Any] = {key: checkpoint[key] for key in ("optimizer_history", "task_state") if key in checkpoint}
    return {**kept, "args": None, "cfg": cfg, "model": state, "extra_state": {}}


def _stock_name(name: str) -> str:
    """Name the stock task, criterion or optimizer that one of this package is based on."""
    return name.removeprefix(FUSED).removesuffix("_sharing").removesuffix("_with_teacher")


def _with_attributes(arguments: Mapping[str, Any]) -> OrderedDict[str, Any]:
    """Make a dict of arguments whose items are also attributes.

    fairseq reads the items; CTranslate2's converter reads attributes, as of a Namespace. torch reads both without
    executing code: unlike a Namespace, an OrderedDict with attributes is allowed by its safe reader.
    """
    made = OrderedDict(arguments)
    made.__dict__.update(arguments)
    return made
