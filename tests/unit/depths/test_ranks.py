"""At several depths, two ranks run the same depth in every step and stay equal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from depths_rank import MICRO_BATCHES, RUNS, UPDATES

HELPERS = Path(__file__).resolve().parents[2] / "helpers"


@pytest.fixture(scope="module")
def noted(tmp_path_factory, data_dir, commands):
    """Return the record of each of two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    store = folder / "store"
    started = [
        commands.start("depths_rank", data_dir, rank, 2, store, folder / f"{rank}.pt", cwd=HELPERS) for rank in range(2)
    ]
    for rank in started:
        rank.wait()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", RUNS)
def test_ranks_run_the_same_depths_and_stay_equal(name, noted):
    (steps, weights), (other_steps, other_weights) = (record[name] for record in noted)
    assert steps == other_steps
    assert len(steps) == UPDATES * MICRO_BATCHES
    assert len({tuple(depths) for depths in steps}) == (1 if name == "aligned" else 3)
    for parameter, value in weights.items():
        assert torch.equal(value, other_weights[parameter]), parameter


def test_backends_agree_on_unused_parameters(noted):
    for record in noted:
        for parameter, value in record["none"][1].items():
            torch.testing.assert_close(record["unused"][1][parameter], value, rtol=1e-4, atol=1e-5, msg=parameter)
