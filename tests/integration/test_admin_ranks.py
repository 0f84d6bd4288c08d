"""Admin on two ranks: profiled once from the first batch of the first rank, equal on all ranks and after a resume."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from tiny_training import distributed

from fairseq_sharing.checkpoints.files import load_checkpoint

UPDATES = 2
FLAGS = ["--admin", "profile", "--lr", "1e-7", "--dropout", "0.1"]  # too small to change a weight noticeably


def keep_weights(folder: Path) -> None:
    """Write every rank's residual weights after each update of a training in this process."""
    from fairseq.trainer import Trainer

    stock = Trainer.train_step

    def train_step(self, *args, **kwargs):
        done = stock(self, *args, **kwargs)
        weights = {name: p.detach().clone() for name, p in self.get_model().named_parameters() if "residual" in name}
        torch.save(weights, folder / f"rank{self.data_parallel_rank}-update{self.get_num_updates()}.pt")
        return done

    Trainer.train_step = train_step


def test_two_ranks_measure_once_and_agree(tmp_path, commands, train_words):
    for until in (UPDATES, UPDATES + 1):  # the second run resumes from a checkpoint
        words = train_words(tmp_path / "run", *FLAGS, "--max-update", until, *distributed(2), "--distributed-no-spawn")
        hook = partial(keep_weights, tmp_path)
        ranks = [
            commands.start("fairseq_cli.train", *words, "--distributed-rank", rank, before=hook) for rank in range(2)
        ]
        for rank in ranks:
            rank.wait()
    first = torch.load(tmp_path / "rank0-update1.pt")
    assert len(first) == 8, "two stacks of four layers share two sets but have separate residual weights"
    assert max(weight.max() for weight in first.values()) > 1.2, "the weights were not profiled"
    for update in range(1, UPDATES + 2):
        one, other = (torch.load(tmp_path / f"rank{rank}-update{update}.pt") for rank in range(2))
        for name, weight in one.items():
            assert torch.equal(weight, other[name]), f"update {update}: the ranks differ in {name}"
            torch.testing.assert_close(weight, first[name], rtol=0, atol=1e-5, msg=f"update {update} profiled again")
    saved = load_checkpoint(tmp_path / "run" / "checkpoint_last.pt")["model"]
    for name, weight in one.items():
        assert torch.equal(saved[name], weight)
