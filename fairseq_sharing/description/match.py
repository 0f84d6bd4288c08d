"""Find the width or depth at which a configuration costs as much as another one.

The counter of ``describe`` is the oracle: every candidate is built without storage and counted.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairseq_sharing import flags
from fairseq_sharing.description.bisection import Grid, surround
from fairseq_sharing.description.counts import build_without_storage, count_macs, count_parameters
from fairseq_sharing.description.step_memory import TOKENS
from fairseq_sharing.description.step_time import StepTimer, alternate
from fairseq_sharing.errors import SharingError

BUDGETS = ("parameters", "macs", "time")
# What can be solved for -> the options that get the value.
FIELDS: Mapping[str, tuple[str, ...]] = {
    **{
        name: (f"encoder_{name}", f"decoder_{name}") for name in ("embed_dim", "ffn_embed_dim", "layers", "ffn_experts")
    },
    **{
        name: (name,)
        for stack in ("encoder", "decoder")
        for name in (f"{stack}_embed_dim", f"{stack}_ffn_embed_dim", f"{stack}_layers", f"{stack}_ffn_experts")
    },
    **{name: (name,) for name in ("embedding_factor_dim", "expert_dim")},
}
# Options that follow the width of the decoder where a configuration sets them to the same value.
_FOLLOWERS = ("decoder_input_dim", "decoder_output_dim")
# Largest relative difference of the budgets.
TOLERANCE = 0.01
_MOST_LAYERS, _MOST_WIDTH = 1024, 1 << 20


@dataclass(frozen=True)
class Cost:
    """What a configuration costs.

    Args:
        parameters: unique parameters.
        embeddings: those of them that are embeddings, including tied output layers.
        macs: MACs of the forward pass over one sentence pair, including the output layer.
        relative: the budget, divided by that of the reference.
    """

    parameters: int
    embeddings: int
    macs: int
    relative: float

    @property
    def residual(self) -> float:
        """The relative difference from the reference."""
        return self.relative - 1


@dataclass(frozen=True)
class Setting:
    """How budgets are measured.

    Args:
        by: the budget, one of ``BUDGETS``.
        vocabulary: size of the joined dictionary.
        length: source and target tokens per sentence.
        runs: measurements of the time of each candidate and of the reference.
        device: device of these measurements.
    """

    by: str
    vocabulary: int
    length: int = 25
    runs: int = 5
    device: str = "cpu"


@dataclass(frozen=True)
class Match:
    """The result of a search.

    Args:
        options: the options that were solved for.
        reference: cost of the reference.
        candidates: the adjacent values below and above the target, and their costs.
        value: the chosen value.
    """

    options: tuple[str, ...]
    reference: Cost
    candidates: Mapping[int, Cost]
    value: int

    @property
    def overrides(self) -> str:
        """The overrides of the configuration that give the chosen value."""
        return " ".join(f"train.{option}={self.value}" for option in self.options)


def match(
    train: Mapping[str, Any],
    reference: Mapping[str, Any],
    solve: Sequence[str],
    setting: Setting,
    multiple_of: int = 1,
    nearest: bool = False,
) -> Match:
    """Find the value of options at which a configuration has the budget of a reference.

    Args:
        train: the ``train`` block of the configuration.
        reference: that of the reference.
        solve: names in ``FIELDS``; all options get the same value.
        setting: the budget and how it is measured.
        multiple_of: only multiples of this number are tried. A width is also a multiple of the attention heads.
        nearest: choose the nearer of the two values around the target instead of the lower one.

    Raises:
        SharingError: an unknown field, one that the model does not have or the budget does not depend on, or a budget
            that no value reaches within 1%.
    """
    options = _options(train, solve)
    args = flags.parse(train)
    step = _step(args, options, multiple_of)
    meter = _Meter(flags.parse(reference), setting)
    everything = (*options, *_followers(train, args, options))

    def with_value(value: int) -> Namespace:
        return flags.parse({**train, **dict.fromkeys(everything, value)})

    starts: dict[str, Any] = {option: getattr(args, option, None) for option in options}
    missing = next((option for option, start in starts.items() if not start), None)
    if missing is not None:
        raise SharingError(f"--solve {missing}: the configuration has no train.{missing}; set it to any value")
    limit = _MOST_LAYERS if any("layers" in option for option in options) else _MOST_WIDTH
    if step > limit:
        raise SharingError(f"--multiple-of {multiple_of}; allowed: values at most {limit} of {', '.join(options)}")
    grid = Grid(max(1, min(map(int, starts.values())) // step), limit // step, step)
    what = f"--solve {','.join(options)}: {setting.by} relative to the reference"
    found = surround(lambda value: meter.relative(with_value(value)), 1.0, grid, what)
    candidates = {value: meter.cost(with_value(value), relative) for value, relative in found.items()}
    chosen, other = candidates
    if nearest and abs(candidates[other].residual) < abs(candidates[chosen].residual):
        chosen = other
    return Match(everything, meter.reference, candidates, chosen)


def refuse_residual(found: Match, setting: Setting) -> None:
    """Refuse a match whose budget differs from the reference's by more than 1%.

    Raises:
        SharingError: with both neighbors.
    """
    if abs(found.candidates[found.value].residual) <= TOLERANCE:
        return
    both = " and ".join(f"{100 * cost.residual:+.2f}% at {value}" for value, cost in found.candidates.items())
    reached = any(abs(cost.residual) <= TOLERANCE for cost in found.candidates.values())
    hint = "--nearest" if reached else "a smaller --multiple-of or another --solve"
    if setting.by == "time":
        hint += ", or more --runs on an idle machine"
    raise SharingError(
        f"--solve {','.join(found.options)}: the difference in {setting.by} is {both}; allowed: at most "
        f"{100 * TOLERANCE:g}%; try {hint}"
    )


class _Meter:
    """Measure the budgets of configurations and compare them with that of the reference."""

    def __init__(self, reference: Namespace, setting: Setting):
        self._setting = setting
        self._tokens = getattr(reference, "max_tokens", None) or TOKENS
        self._timer = self._time(reference) if setting.by == "time" else None
        self._budget = 1 if setting.by == "time" else self._count(reference)
        self.reference = self.cost(reference, 1.0)

    def relative(self, args: Namespace) -> float:
        """Return the budget of a configuration, divided by that of the reference."""
        if self._timer is None:
            return self._count(args) / self._budget
        seconds, of_reference = alternate(self._time(args), self._timer, self._setting.runs)
        return seconds / of_reference

    def cost(self, args: Namespace, relative: float) -> Cost:
        """Return all costs of a configuration with a known relative budget."""
        model = self._build(args)
        parameters = count_parameters(model)
        macs = count_macs(model, self._setting.length)
        return Cost(sum(parameters.values()), parameters["embeddings"], macs, relative)

    def _count(self, args: Namespace) -> int:
        model = self._build(args)
        if self._setting.by == "macs":
            return count_macs(model, self._setting.length)
        return sum(count_parameters(model).values())

    def _build(self, args: Namespace) -> Any:
        try:
            return build_without_storage(args, self._setting.vocabulary)
        except ValueError as error:  # fairseq's own checks of combinations
            raise SharingError(str(error)) from error

    def _time(self, args: Namespace) -> Callable[[], float]:
        timer = StepTimer(args, self._setting.vocabulary, self._tokens, self._setting.length, self._setting.device)
        return timer.seconds


def _options(train: Mapping[str, Any], solve: Sequence[str]) -> tuple[str, ...]:
    """Return the options to solve for that the model has."""
    options: list[str] = []
    for field in solve:
        if field not in FIELDS:
            raise SharingError(f"--solve {field}: unknown; allowed: {', '.join(FIELDS)}")
        known = [option for option in FIELDS[field] if flags.takes(train, option)]
        if not known:
            takes = [name for name, some in FIELDS.items() if any(flags.takes(train, option) for option in some)]
            raise SharingError(f"--solve {field}: no option of --arch {train.get('arch')}; allowed: {', '.join(takes)}")
        options += [option for option in known if option not in options]
    return tuple(options)


def _step(args: Namespace, options: Sequence[str], multiple_of: int) -> int:
    """Return the step of the values: widths are multiples of the attention heads."""
    heads = [
        getattr(args, option.replace("embed_dim", "attention_heads"))
        for option in options
        if option.endswith("coder_embed_dim") and getattr(args, "head_dim", None) is None
    ]
    return math.lcm(multiple_of, *heads)


def _followers(train: Mapping[str, Any], args: Namespace, options: Sequence[str]) -> list[str]:
    if "decoder_embed_dim" not in options:
        return []
    return [name for name in _FOLLOWERS if train.get(name) == args.decoder_embed_dim and name not in options]
