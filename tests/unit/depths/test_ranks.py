"""At several depths, two ranks run the same depth in every step and stay equal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from depths_rank import MICRO_BATCHES, RUNS, UPDATES

HELPERS = Path(__file__).resolve().parents[2] / "helpers"


@pytest.fixture(scope="module")
def noted(tmp_path_factory, data_dir):
    """Return the record of each of two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HELPERS), str(HELPERS.parents[1])])}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}
    started = [
        subprocess.Popen(
            [
                *(sys.executable, HELPERS / "depths_rank.py", data_dir, str(rank), "2"),
                *(folder / "store", folder / f"{rank}.pt"),
            ],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in started:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors[-2000:]
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
