"""Build the schedule that the options select."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping

from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import StackSharing, format_sharing
from fairseq_sharing.schedules.dynamic import Dynamic
from fairseq_sharing.schedules.replay import Replay
from fairseq_sharing.schedules.schedule import Schedule
from fairseq_sharing.schedules.unshare import Unshare, UnshareRule


def build_schedule(options: Namespace, sharing: Mapping[str, StackSharing]) -> Schedule:
    """Build a schedule.

    Args:
        options: result of ``read_options``, with a schedule.
        sharing: initial sharing of each stack.

    Raises:
        SharingError: if the schedule cannot start with the initial map.
    """
    if components := next((s for s in sharing.values() if s.components), None):
        raise SharingError(
            f"--sharing-schedule {options.sharing_schedule} changes whole layers, but the components have the maps "
            f"{format_sharing(components)}; allowed: --sharing without --component-sharing and --cross-stack-sharing"
        )
    maps = {stack: s.layer_map for stack, s in sharing.items()}
    if options.sharing_schedule == "unshare":
        if not any(s.shares for s in sharing.values()):
            raise SharingError("--sharing-schedule unshare: no layers are shared; set --sharing, for example universal")
        rule = UnshareRule(
            options.unshare_at,
            options.unshare_when,
            options.unshare_threshold,
            options.unshare_interval,
            options.unshare_patience,
        )
        return Unshare(rule, maps)
    if options.sharing_schedule == "dynamic":
        return Dynamic(options, maps)
    return Replay(options.replay_of, maps)
