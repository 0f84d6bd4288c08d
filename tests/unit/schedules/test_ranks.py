"""With a schedule, two ranks stay equal to each other and to one rank with all batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from schedule_rank import BF16, RUNS, run

HELPERS = Path(__file__).resolve().parents[2] / "helpers"


@pytest.fixture(scope="module")
def noted(tmp_path_factory, data_dir, commands):
    """(ranks, rank) -> its state after each update."""
    folder = tmp_path_factory.mktemp("ranks")
    store = folder / "store"
    started = [
        commands.start("schedule_rank", data_dir, rank, 2, store, folder / f"{rank}.pt", cwd=HELPERS)
        for rank in range(2)
    ]
    alone = run(str(data_dir), 0, 1)
    for rank in started:
        rank.wait()
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
