"""The rows of the study of sharing schemes have the parameters of Vanilla."""

from __future__ import annotations

import pytest

from fairseq_sharing import flags
from fairseq_sharing.description.counts import build_without_storage, count_parameters
from fairseq_sharing.experiment.config import compose, find_study

VOCABULARY, VANILLA = 9808, 2_580_480
ROWS = list(find_study("schemes").rows)


@pytest.mark.parametrize("row", ROWS)
def test_parameters_are_those_of_vanilla_within_one_percent(row):
    composed = compose("schemes", [f"row={row}"], check=flags.check)
    total = sum(count_parameters(build_without_storage(flags.parse(composed.train), VOCABULARY)).values())
    assert abs(total / VANILLA - 1) <= 0.01
    if row == "vanilla":
        assert total == VANILLA
    assert (composed.train.max_epoch, composed.evaluate.average_last) == (10, 5)
