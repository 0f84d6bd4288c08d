"""List the flags that this package adds to fairseq's commands, from the dataclasses that define them."""

from __future__ import annotations

from argparse import Action, ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fairseq import models
from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import FairseqEncoderDecoderModel, FairseqEncoderModel, FairseqLanguageModel
from fairseq.registry import REGISTRIES

import fairseq_sharing
from fairseq_sharing.adapters.kinds import DEPTH_OPTIONS
from fairseq_sharing.component_sharing import COMPONENT_OPTIONS, CROSS_STACK_OPTION
from fairseq_sharing.depths.options import DepthOptions
from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import SCOPES, SHARING_CHOICES, STRATEGIES, make_layer_map
from fairseq_sharing.models.presets import PRESETS
from fairseq_sharing.models.sharing_options import SharingOptions
from fairseq_sharing.models.structure_checks import STRUCTURES
from fairseq_sharing.moeut.counts import MoECounts
from fairseq_sharing.moeut.options import MoEOptions
from fairseq_sharing.options import flag_of
from fairseq_sharing.schedules.options import CHOICES, RANGES, ScheduleOptions

ALL = "all"
_PACKAGE = "fairseq_sharing."
# Model -> sharing options that it refuses, because its layers do not support them.
_MOEUT_REFUSES = (
    *("admin", *STRUCTURES, "depth_signal", "position_per_depth", "act", "act_epsilon", "fast", "compile"),
    *(*COMPONENT_OPTIONS, CROSS_STACK_OPTION, *DEPTH_OPTIONS),
)
REFUSED = {
    "transformer_lm_sharing": ("admin", "encoder_no_ffn", CROSS_STACK_OPTION),
    "roberta_sharing": (
        *("admin", "deepnorm", "decoder_no_ffn", "embedding_factor_dim"),
        *("depth_signal", "act", "act_epsilon", CROSS_STACK_OPTION),
    ),
    "transformer_moeut": _MOEUT_REFUSES,
    "transformer_lm_moeut": _MOEUT_REFUSES,
}
# Criterion -> flag that a model must have to use it.
_NEEDS = {
    "--criterion moe_cross_entropy": "--ffn-experts",
    "--criterion label_smoothed_cross_entropy_with_ponder": "--act",
}
# Criterions for translation models without expert banks.
_TRANSLATION_ONLY = ("--criterion label_smoothed_cross_entropy_with_teacher",)
# Criterion and optimizer of fairseq that those of this package extend.
_STOCK = {"criterion": "label_smoothed_cross_entropy", "optimizer": "adam"}
# Defaults of options that have no default in the dataclass.
_UNSET = {"sharing": "none", "sharing_scope": "layer"}
_TASKS = {
    FairseqEncoderDecoderModel: "translation_sharing",
    FairseqLanguageModel: "language_modeling_sharing",
    FairseqEncoderModel: "masked_lm_sharing",
}
# MoEUT options that the dense baseline of the language model, which has no experts, takes.
DENSE_TAKES = ("head_dim", "rotary_dim")


_EVERYWHERE = "For all architectures of this package, except as follows. " + " ".join(
    f"`{model}` refuses {', '.join(f'`{flag_of(option)}`' for option in options)}."
    for model, options in REFUSED.items()
)


@dataclass(frozen=True)
class Flag:
    """One flag.

    Attributes:
        name: the name, including the dashes.
        allowed: the allowed values.
        default: the default value; empty if there is none.
        meaning: the help text.
    """

    name: str
    allowed: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Group:
    """A group of flags.

    Attributes:
        title: a heading.
        where: a sentence about what they apply to.
        flags: the flags in the order of their definition.
    """

    title: str
    where: str
    flags: tuple[Flag, ...]


def architectures() -> dict[str, list[str]]:
    """Return the architectures of this package by registered model."""
    found: dict[str, list[str]] = {}
    for name, model in models.MODEL_REGISTRY.items():
        if model.__module__.startswith(_PACKAGE):
            found[name] = [arch for arch, kind in models.ARCH_MODEL_REGISTRY.items() if kind is model]
    return found


def list_flags(arch: str = ALL) -> list[Group]:
    """List the flags that this package adds.

    Args:
        arch: an architecture, to list the flags that apply to it with its defaults; ``all`` for every flag with the
            default of its definition.

    Returns:
        The flags of models, criterions, optimizers and tasks.

    Raises:
        SharingError: an unknown architecture.
    """
    fairseq_sharing.register()
    if arch == ALL:
        return [*_model_groups(), *_choice_groups("criterion"), *_choice_groups("optimizer"), _schedule_group()]
    known = [name for names in architectures().values() for name in names]
    if arch not in known:
        raise SharingError(f"ARCH must be {ALL} or one of {', '.join(known)}, got {arch!r}")
    groups = _model_groups(arch)
    names = {flag.name for group in groups for flag in group.flags}
    criterions = [
        group for group in _choice_groups("criterion") if _NEEDS.get(group.title, "--arch") in {"--arch", *names}
    ]
    model = models.ARCH_MODEL_REGISTRY[arch]
    if issubclass(model, FairseqEncoderModel):
        criterions = []  # they require a decoder
    if issubclass(model, MoECounts) or not issubclass(model, FairseqEncoderDecoderModel):
        criterions = [group for group in criterions if group.title not in _TRANSLATION_ONLY]
    return [*groups, *criterions, *_choice_groups("optimizer"), _schedule_group(arch)]


def _model_groups(arch: str | None = None) -> list[Group]:
    groups = [
        Group("Sharing and training", _EVERYWHERE, _flags(SharingOptions(), arch)),
        Group("Several depths", "For all architectures of this package.", _flags(DepthOptions(), arch)),
    ]
    if arch is None or issubclass(models.ARCH_MODEL_REGISTRY[arch], MoECounts):
        banks = "For `--arch transformer_moeut`, `--arch transformer_lm_moeut` and their sizes."
        groups.append(Group("MoEUT", banks, _flags(MoEOptions(), arch)))
    return groups


def _choice_groups(kind: str) -> list[Group]:
    """List the flags of each criterion or optimizer of this package; those of fairseq's base class once."""
    registry = REGISTRIES[kind]
    groups = []
    for name, registered in registry["registry"].items():
        if registered.__module__.startswith(_PACKAGE):
            config = registry["dataclass_registry"][name]
            own = config.__module__.startswith(_PACKAGE)
            also = "Its own flags. It also takes" if own else "It takes"
            where = f"{also} the flags of fairseq's `--{kind} {_STOCK[kind]}`."
            taken = {flag.name for flag in _flags(config.__mro__[1]())} if own else set()
            flags = tuple(flag for flag in _flags(config()) if flag.name not in taken)
            groups.append(Group(f"--{kind} {name}", where, flags))
    return sorted(groups, key=lambda group: group.title)


def _schedule_group(arch: str | None = None) -> Group:
    model = None if arch is None else models.ARCH_MODEL_REGISTRY[arch]
    names = [name for base, name in _TASKS.items() if model is None or issubclass(model, base)]
    where = "With " + " or ".join(f"`--task {name}`" for name in names) + "."
    return Group("Sharing that changes during training", where, _flags(ScheduleOptions()))


def _flags(options: FairseqDataclass, arch: str | None = None) -> tuple[Flag, ...]:
    """Read the flags that fairseq makes from a dataclass."""
    parser = ArgumentParser(add_help=False)
    gen_parser_from_dataclass(parser, options)
    own = Namespace()
    if arch is not None:
        models.ARCH_CONFIG_REGISTRY[arch](own)
    return tuple(
        _flag(action, getattr(own, action.dest, action.default))
        for action in parser._actions
        # An interpolated default marks a flag of another group of fairseq.
        if "${" not in str(action.default) and (arch is None or _applies(arch, own, action.dest))
    )


def _applies(arch: str, own: Namespace, option: str) -> bool:
    model = models.ARCH_MODEL_REGISTRY[arch]
    name = next(name for name, archs in architectures().items() if arch in archs)
    missing = ("encoder_",) if issubclass(model, FairseqLanguageModel) else ()
    missing = ("decoder_",) if issubclass(model, FairseqEncoderModel) else missing
    if getattr(own, "layer_type", None) == "dense" and hasattr(MoEOptions, option) and option not in DENSE_TAKES:
        return False
    return option not in REFUSED.get(name, ()) and not option.startswith(missing)


def _flag(action: Action, default: Any) -> Flag:
    shown = _UNSET.get(action.dest, "") if default is None or default is False else str(default)
    return Flag(action.option_strings[-1], _allowed(action), shown, " ".join((action.help or "").split()))


def _allowed(action: Action) -> str:
    name = action.dest
    if action.nargs == 0:
        return "switch"
    choices: Iterable[Any] | None = action.choices or CHOICES.get(name)
    if name.endswith("sharing") and name not in (*COMPONENT_OPTIONS, CROSS_STACK_OPTION):
        choices = SHARING_CHOICES
    if name == "preset":
        choices = PRESETS
    if name.endswith("sharing_scope"):
        choices = SCOPES
    if choices:
        return ", ".join(map(str, choices))
    kind = "integer" if action.type is int else "number" if action.type is float else "text"
    if name not in RANGES:
        return kind
    low, high = RANGES[name]
    return f"{kind}, {low} or more" if high is None else f"{kind}, {low} to {high}"


def as_text(groups: Sequence[Group]) -> str:
    """Format flags for a terminal."""
    lines = []
    for group in groups:
        lines += [group.title, f"  {group.where.replace('`', '')}", ""]
        for flag in group.flags:
            default = f"; default: {flag.default}" if flag.default else ""
            lines += [f"  {flag.name}  ({flag.allowed}{default})", f"      {flag.meaning}"]
        lines.append("")
    return "\n".join(lines)


def as_markdown(groups: Sequence[Group]) -> str:
    """Format flags as the page docs/flags.md."""
    lines = [_INTRODUCTION, "## Strategies", "", *_strategies(), "", "## Architectures", "", *_architectures(), ""]
    for group in groups:
        lines += [f"## {group.title}", "", group.where, ""]
        cells = [(f"`{f.name}`", f.allowed, f.default, f.meaning) for f in group.flags]
        lines += [*_table(("flag", "allowed", "default", "meaning"), cells), ""]
    return "\n".join(lines)


_INTRODUCTION = """\
# Flags

<!-- Written by: fairseq-sharing flags --markdown > docs/flags.md -->

These are the flags that this package adds to `fairseq-train --user-dir fairseq_sharing`. All other flags are those of
fairseq's `transformer`, `transformer_lm` and `roberta`, for example `--encoder-layers` and `--decoder-layers`, the
number of layers N of each stack. In the `train` block of a configuration, write `unique_layers: 3` for
`--unique-layers 3` and `fast: true` for a switch.

`fairseq-sharing flags` prints this list. `fairseq-sharing flags ARCH` prints the flags that apply to one architecture,
with its defaults.
"""


def _strategies() -> list[str]:
    """Show the map of each strategy for N = 6 layers and, if M can be chosen, M = 3 parameter sets."""
    cells = []
    for name in SHARING_CHOICES:
        if name not in STRATEGIES:
            cells.append((f"`{name}`", "any: `--layer-map 0,1,2,2,1,0`", "implied by the map"))
            continue
        fixed = STRATEGIES[name].fixed_unique_layers
        shown = " ".join(map(str, make_layer_map(name, 6, None if fixed else 3)))
        unique = "`--unique-layers`" if fixed is None else str(fixed(6)) if fixed(6) == fixed(7) else "N"
        cells.append((f"`{name}`", shown, unique))
    return [
        "M is the number of parameter sets of a stack, N the number of its layers. The maps are for N = 6 and M = 3.",
        "",
        *_table(("`--sharing`", "layer map", "M"), cells),
    ]


def _architectures() -> list[str]:
    names = {model: ", ".join(f"`{arch}`" for arch in archs) for model, archs in sorted(architectures().items())}
    return _table(("model", "`--arch`"), [(f"`{model}`", archs) for model, archs in names.items()])


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [headers, ["---"] * len(headers), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
