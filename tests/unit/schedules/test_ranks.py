"""With a schedule, two ranks stay equal to each other and to one rank with all batches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from schedule_rank import BF16, RUNS, run

HELPERS = Path(__file__).resolve().parents[2] / "helpers"


@pytest.fixture(scope="module")
def noted(tmp_path_factory, data_dir):
    """(ranks, rank) -> its state after each update."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HELPERS), str(HELPERS.parents[1])])}
    # Virtual machines may report bf16 units (AMX) that they do not have.
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}
    started = {
        rank: subprocess.Popen(
            [
                *(sys.executable, HELPERS / "schedule_rank.py", data_dir, str(rank), "2"),
                *(folder / "store", folder / f"{rank}.pt"),
            ],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    }
    alone = run(str(data_dir), 0, 1)
    for process in started.values():
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors[-2000:]
    together = {(2, rank): torch.load(folder / f"{rank}.pt") for rank in range(2)}
    return {(1, 0): alone, **together}


@pytest.mark.parametrize("name", [*RUNS, *BF16])
def test_ranks_hold_the_same_bits_after_every_update(name, noted):
    for update, (one, other) in enumerate(zip(noted[2, 0][name], noted[2, 1][name], strict=True), 1):
        assert one["maps"] == other["maps"]
        assert one["schedule"] == other["schedule"], f"update {update}: Q-network, state, reward, epsilon"
        for part in ("gradient", "weight", "exp_avg", "exp_avg_sq"):
            assert one[part].keys() == other[part].keys()
            for tensor, value in one[part].items():
                assert torch.equal(value, other[part][tensor]), f"update {update}: {part} of {tensor}"


@pytest.mark.parametrize("name", RUNS)
def test_one_rank_with_all_the_batches_agrees(name, noted):
    for update, (two, one) in enumerate(zip(noted[2, 0][name], noted[1, 0][name], strict=True), 1):
        assert two["maps"] == one["maps"], f"update {update}"
        assert two["logged"] == pytest.approx(one["logged"], rel=1e-4)
        for part in ("gradient", "weight", "exp_avg", "exp_avg_sq"):
            assert two[part].keys() == one[part].keys()
            for tensor, value in two[part].items():
                torch.testing.assert_close(
                    value, one[part][tensor], atol=2e-5, rtol=1e-3, msg=f"update {update}: {part} of {tensor}"
                )
