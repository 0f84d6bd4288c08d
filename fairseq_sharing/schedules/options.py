"""Flags of the schedules, and the options that they cannot be combined with."""

from argparse import Namespace
from dataclasses import dataclass, fields
from typing import Any, Optional

import torch
from fairseq.dataclass import FairseqDataclass

from fairseq_sharing.errors import SharingError
from fairseq_sharing.options import flag_of, option_field

SCHEDULES = ("unshare", "dynamic", "replay")
TIED_GRADIENTS = ("mean", "sum", "root")
# These optimizers keep state per parameter and create it at the parameter's first update.
OPTIMIZERS = ("adadelta", "adafactor", "adam", "adamax", "nag", "sgd", "fused_adam")
DDP_BACKENDS = ("legacy_ddp", "no_c10d")


@dataclass
class ScheduleOptions(FairseqDataclass):
    """Options that ``--task translation_sharing`` and related tasks add to those of fairseq's tasks."""

    # fairseq derives the flags from these annotations at run time: use Optional and no postponed annotations.

    sharing_schedule: Optional[str] = option_field("how sharing changes during training: " + ", ".join(SCHEDULES))
    tied_gradients: Optional[str] = option_field(
        "gradient of a shared parameter: mean over the layers that use it (default with unshare), sum (default with "
        "dynamic and replay), or the gradient of the first of them (root)"
    )
    untied_moments: str = option_field(
        "optimizer state of a layer that becomes independent: inherit (a copy of the shared state) or reset",
        "inherit",
    )
    unshare_at: Optional[int] = option_field("unshare: the update at which all layers become independent")
    unshare_when: Optional[str] = option_field(
        "unshare: correlation unties a stack when the gradients of most adjacent units disagree; correlation-split "
        "splits it between two units that disagree"
    )
    unshare_threshold: float = option_field("unshare: two gradients disagree if their cosine is below this value", 0.5)
    unshare_interval: int = option_field("unshare: updates between checks of the gradients", 1000)
    unshare_patience: int = option_field("unshare: number of consecutive checks that must find disagreement", 3)
    dynamic_interval: int = option_field("dynamic: updates between decisions", 15)
    dynamic_agent: str = option_field(
        "dynamic: one agent for both stacks (joint), one per stack (separate), or one for one stack (encoder, decoder)",
        "joint",
    )
    dynamic_policy: str = option_field("dynamic: q (Q-learning), or random as a control", "q")
    dynamic_decide: str = option_field(
        "dynamic: decide for all layers at once, or for one layer at a time in turn (layer)", "all"
    )
    dynamic_reward: str = option_field(
        "dynamic: nll (minus the loss per target token, in nats), ppl (minus the perplexity), or ppl-clip10 (minus the "
        "perplexity, clipped to -10)",
        "nll",
    )
    dynamic_reward_when: str = option_field(
        "dynamic: reward a decision at the next decision (after) or immediately (immediate)", "after"
    )
    dynamic_discount: float = option_field("dynamic: discount of the next state's value", 0.99)
    dynamic_lr: float = option_field("dynamic: learning rate of the Q-network", 0.001)
    dynamic_hidden: int = option_field("dynamic: hidden units of the Q-network", 128)
    dynamic_epsilon_min: float = option_field("dynamic: lowest probability of a random action", 0.1)
    dynamic_epsilon_decay: float = option_field(
        "dynamic: factor that reduces this probability, which starts at 1", 0.95
    )
    dynamic_epsilon_per: str = option_field(
        "dynamic: reduce it after every decision, or after every sweep over the layers", "decision"
    )
    dynamic_state: str = option_field(
        "dynamic: layer numbers as the Q-network's input: scaled by the depth, or raw", "scaled"
    )
    dynamic_initial: str = option_field(
        "dynamic: freeze all layers but the first until their first decision, or train them all", "freeze"
    )
    dynamic_seed: Optional[int] = option_field("dynamic: seed of the agent (default: --seed)")
    freeze_pattern_at: Optional[int] = option_field("dynamic: the update after which the map does not change")
    replay_of: Optional[str] = option_field("replay: a checkpoint of the run whose changes are repeated")


# Option -> its allowed values.
CHOICES = {
    "sharing_schedule": SCHEDULES,
    "tied_gradients": TIED_GRADIENTS,
    "untied_moments": ("inherit", "reset"),
    "unshare_when": ("correlation", "correlation-split"),
    "dynamic_agent": ("joint", "separate", "encoder", "decoder"),
    "dynamic_policy": ("q", "random"),
    "dynamic_decide": ("all", "layer"),
    "dynamic_reward": ("nll", "ppl", "ppl-clip10"),
    "dynamic_reward_when": ("after", "immediate"),
    "dynamic_epsilon_per": ("decision", "sweep"),
    "dynamic_state": ("scaled", "raw"),
    "dynamic_initial": ("freeze", "train"),
}
# Prefix of an option's name -> the schedule that it belongs to.
_OWNERS = {"unshare_": "unshare", "dynamic_": "dynamic", "freeze_pattern_": "dynamic", "replay_": "replay"}
# Option -> its range, inclusive.
RANGES = {
    "unshare_at": (1, None),
    "unshare_threshold": (-1, 1),
    "unshare_interval": (1, None),
    "unshare_patience": (1, None),
    "dynamic_interval": (1, None),
    "dynamic_discount": (0, 1),
    "dynamic_hidden": (1, None),
    "dynamic_epsilon_min": (0, 1),
    "dynamic_epsilon_decay": (0, 1),
    "freeze_pattern_at": (1, None),
}


def read_options(cfg: Any, seed: int = 1) -> Namespace:
    """Read the options of a schedule from a task's configuration.

    Args:
        cfg: the configuration.
        seed: seed of the training.

    Raises:
        SharingError: if a value is not allowed, or if an option is missing or belongs to another schedule.
    """
    options = Namespace(
        **{option.name: getattr(cfg, option.name, None) for option in fields(ScheduleOptions) if option.name != "_name"}
    )
    for name, allowed in CHOICES.items():
        value = getattr(options, name)
        if value is not None and value not in allowed:
            raise SharingError(f"{flag_of(name)} must be one of {', '.join(allowed)}, got {value}")
    for name, (low, high) in RANGES.items():
        value = getattr(options, name)
        if value is not None and not (low <= value and (high is None or value <= high)):
            limits = f"at least {low}" if high is None else f"between {low} and {high}"
            raise SharingError(f"{flag_of(name)} must be {limits}, got {value}")
    _check_together(options)
    if options.tied_gradients is None:
        options.tied_gradients = "mean" if options.sharing_schedule == "unshare" else "sum"
    if options.dynamic_seed is None:
        options.dynamic_seed = seed
    return options


def _check_together(options: Namespace) -> None:
    schedule = options.sharing_schedule
    for option in fields(ScheduleOptions):
        owner = next((owner for prefix, owner in _OWNERS.items() if option.name.startswith(prefix)), schedule)
        if owner != schedule and getattr(options, option.name) not in (None, option.default):
            raise SharingError(f"{flag_of(option.name)} requires --sharing-schedule {owner}, got {schedule or 'none'}")
    if schedule is None and options.tied_gradients is not None:
        raise SharingError(f"--tied-gradients {options.tied_gradients} requires --sharing-schedule")
    if schedule == "unshare" and (options.unshare_at is None) == (options.unshare_when is None):
        raise SharingError("--sharing-schedule unshare requires either --unshare-at or --unshare-when")
    if options.unshare_when is not None and options.tied_gradients == "root":
        raise SharingError("--unshare-when requires the gradients of all layers; allowed: --tied-gradients mean, sum")
    if schedule == "replay" and options.replay_of is None:
        raise SharingError("--sharing-schedule replay requires --replay-of, a checkpoint of the run to replay")


def check_training(args: Any) -> None:
    """Reject options that a changing layer map cannot be combined with.

    Args:
        args: all arguments of fairseq.

    Raises:
        SharingError: with the flag and the allowed values.
    """

    def given(name: str) -> Any:
        return getattr(args, name, None)

    def refuse(what: str, reason: str, allowed: str = "") -> None:
        choice = f"allowed: {allowed}" if allowed else "allowed: leave it out"
        raise SharingError(f"{what} cannot be combined with --sharing-schedule: {reason}; {choice}")

    initialized = torch.distributed.is_available() and torch.distributed.is_initialized()
    ranks = torch.distributed.get_world_size() if initialized else int(given("distributed_world_size") or 1)
    backend = given("ddp_backend")
    if backend is not None and backend not in DDP_BACKENDS and (ranks > 1 or backend in ("fully_sharded", "slowmo")):
        refuse(
            f"--ddp-backend {backend}",
            "it fixes its list of parameters when training starts",
            f"--ddp-backend {' or '.join(DDP_BACKENDS)}",
        )
    optimizer = given("optimizer")
    if optimizer is not None and optimizer not in OPTIMIZERS:
        refuse(f"--optimizer {optimizer}", "its state cannot follow the parameters", ", ".join(OPTIMIZERS))
    efficient = given("memory_efficient_fp16") or given("memory_efficient_bf16")
    if given("fp16") and not efficient and not given("fp16_no_flatten_grads"):
        refuse(
            "--fp16",
            "its flat gradient buffer is allocated when training starts",
            "--fp16 with --fp16-no-flatten-grads, --memory-efficient-fp16, --amp or --precision bf16",
        )
    if (given("zero_sharding") or "none") != "none":
        refuse(f"--zero-sharding {given('zero_sharding')}", "it shards a fixed list of parameters", "none")
    for name, reason in (
        ("depths", "the layers that run at a depth would change with the map"),
        ("encoder_depths", "the layers that run at a depth would change with the map"),
        ("decoder_depths", "the layers that run at a depth would change with the map"),
        ("use_bmuf", "it keeps its own copies of the parameters"),
        ("store_ema", "it stores copies by name, which would not follow the map"),
        ("checkpoint_activations", "recomputed layers could use the parameters of another map"),
        ("offload_activations", "recomputed layers could use the parameters of another map"),
        ("encoder_layerdrop", "dropping a layer would not drop its parameters"),
        ("decoder_layerdrop", "dropping a layer would not drop its parameters"),
        ("encoder_layers_to_keep", "pruning changes the layer numbering"),
        ("decoder_layers_to_keep", "pruning changes the layer numbering"),
        ("quant_noise_pq", "noise would be applied to a shared weight once per layer"),
        ("quant_noise_scalar", "noise would be applied to a shared weight once per layer"),
        ("quantization_config_path", "it replaces the layers' weights"),
        ("base_layers", "expert layers change the layer numbering"),
        ("pipeline_model_parallel", "the stacks must be on one device"),
        ("tpu", "it compiles a fixed set of parameters"),
    ):
        if given(name):
            refuse(flag_of(name), reason)
    if (given("model_parallel_size") or 1) > 1:
        refuse(f"--model-parallel-size {given('model_parallel_size')}", "the stacks must be on one device", "1")
