"""Two processes with half of the batches each compute the same update as one process with all batches."""

from __future__ import annotations

import pytest
import torch
from fairseq_processes import logged

from fairseq_sharing.checkpoints.files import load_checkpoint

# Plain gradient descent: Adam would amplify the rounding errors of zero gradients.
FLAGS = ["--dropout", "0", "--optimizer", "sgd", "--lr", "0.5", "--max-update", "3"]
FAST = ["--fast", "--criterion", "fused_label_smoothed_cross_entropy"]


@pytest.fixture(scope="module", params=[[], FAST], ids=["plain", "fast"])
def updates(request, tmp_path_factory, train_on_ranks):
    """(ranks, update frequency) -> tokens per batch of each update, and the weights after the last."""
    done = {}
    for ranks, update_freq in ((1, 1), (1, 2), (2, 1)):
        folder = tmp_path_factory.mktemp(f"ranks{ranks}")
        log = train_on_ranks(folder, ranks, *FLAGS, *request.param, "--update-freq", update_freq)
        words = [float(entry["wpb"]) for entry in logged(log, "wpb")]
        state = load_checkpoint(folder / "checkpoint_last.pt")["model"]
        done[ranks, update_freq] = words, {name: value for name, value in state.items() if torch.is_tensor(value)}
    return done


def test_two_ranks_have_the_words_of_two_batches(updates):
    assert len(updates[2, 1][0]) == 3
    assert updates[2, 1][0] == updates[1, 2][0]
    assert sum(updates[2, 1][0]) > 1.5 * sum(updates[1, 1][0])


def test_two_ranks_make_the_same_update(updates):
    two, one, half = (updates[run][1] for run in ((2, 1), (1, 2), (1, 1)))
    assert two.keys() == one.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=2e-6, rtol=1e-5, msg=lambda text, name=name: name + text)
    moved = max((two[name] - half[name]).abs().max() for name in one)
    assert moved > 1e-3, "ranks that ignored each other would compute different updates"


def test_ponder_cost_weighs_the_same_over_steps_and_ranks(tmp_path, train_on_ranks):
    act = ["--act", "both", "--depth-signal", "learned", "--ponder-weight", "0.2", "--update-freq"]
    states = {}
    for ranks, update_freq in ((1, 2), (2, 1)):
        words = [*FLAGS, *act, update_freq, "--criterion", "label_smoothed_cross_entropy_with_ponder"]
        log = train_on_ranks(tmp_path / f"{ranks}", ranks, *words)
        steps = [float(entry["encoder_steps"]) for entry in logged(log, "encoder_steps")]
        state = load_checkpoint(tmp_path / f"{ranks}" / "checkpoint_last.pt")["model"]
        states[ranks] = steps, {name: value for name, value in state.items() if torch.is_tensor(value)}
    assert states[1][0][:3] == pytest.approx(states[2][0][:3], abs=0.002)
    for name, value in states[1][1].items():
        torch.testing.assert_close(states[2][1][name], value, atol=2e-6, rtol=1e-5, msg=lambda t, name=name: name + t)
