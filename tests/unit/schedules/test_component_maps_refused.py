"""Schedules change whole layers and refuse maps of single components."""

from __future__ import annotations

from argparse import Namespace

import pytest

from fairseq_sharing.component_sharing import resolve_sharing
from fairseq_sharing.errors import SharingError
from fairseq_sharing.schedules.build import build_schedule


@pytest.mark.parametrize("schedule", ["unshare", "dynamic", "replay"])
@pytest.mark.parametrize("name", ["component_sharing", "cross_stack_sharing"])
def test_every_schedule_refuses_component_maps(schedule, name):
    given = {"sharing": "universal", name: "ffn=cycle:2"}
    sharing = resolve_sharing(given, {"encoder": 3, "decoder": 2})
    with pytest.raises(SharingError) as error:
        build_schedule(Namespace(sharing_schedule=schedule), sharing)
    message = str(error.value)
    assert message.startswith(f"--sharing-schedule {schedule} changes whole layers, but the components have the maps ")
    assert "self_attn 0,0,0; ffn 0,1,0" in message
    assert message.endswith("allowed: --sharing without --component-sharing and --cross-stack-sharing")
