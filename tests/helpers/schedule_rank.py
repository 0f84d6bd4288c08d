"""One rank of a training with a schedule: ``schedule_rank.py DATA RANK RANKS STORE OUTPUT``.

Writes the state of the rank after each update: gradients, weights and moments by name, and the schedule's state.
"""

from __future__ import annotations

import logging
import sys

import torch
from fairseq.logging import metrics
from scheduled_training import TrainingBatches, changes, make_trainer, sample

RUNS = {
    "split": (
        *("--sharing-schedule=unshare", "--unshare-when=correlation-split", "--unshare-interval=2"),
        *("--unshare-patience=1", "--unshare-threshold=0.8"),
    ),
    "dynamic": ("--sharing-schedule=dynamic", "--dynamic-interval=1", "--dynamic-epsilon-decay=0.5"),
}
RUNS["split, fast"] = (*RUNS["split"], "--fast")
# Only with several ranks: their arithmetic differs from that of one rank.
BF16 = {"dynamic, bf16": (*RUNS["dynamic"], "--precision=bf16")}
MICRO_BATCHES = 2  # per update, over all ranks
# Adam would amplify the rounding errors of gradients that are almost zero.
WORDS = ("--adam-eps=1e-3", "--ddp-backend=legacy_ddp")


def run(data: str, rank: int, ranks: int) -> dict[str, list[dict]]:
    """Train and record everything."""
    noted = {}
    for name, words in (RUNS | BF16 if ranks > 1 else RUNS).items():
        options = {"sharing": "universal"} if name.startswith("split") else {}
        frequency = MICRO_BATCHES // ranks
        parallel = (f"--distributed-world-size={ranks}", f"--update-freq={frequency}")
        trainer = make_trainer(data, *words, *WORDS, *parallel, **options)
        trainer.task._loss.batches = TrainingBatches()
        noted[name] = []
        for update in range(5):
            parts = [sample(100 * update + part) for part in range(MICRO_BATCHES)]
            with metrics.aggregate():
                trainer.train_step(parts[rank::ranks])
            named = dict(trainer.get_model().named_parameters())
            state = trainer.optimizer.optimizer.state
            engine = trainer.task.engine.state_dict()
            noted[name].append(
                {
                    "gradient": {n: p.grad.clone() for n, p in named.items() if p.grad is not None},
                    "weight": {n: p.detach().clone() for n, p in named.items()},
                    "exp_avg": {n: state[p]["exp_avg"].clone() for n, p in named.items() if p in state},
                    "exp_avg_sq": {n: state[p]["exp_avg_sq"].clone() for n, p in named.items() if p in state},
                    "maps": {n: s.layer_map for n, s in trainer.get_model().sharing.items()},
                    "schedule": repr(engine["schedule"]),
                    "logged": trainer.task.engine._schedule.log_values().copy(),
                }
            )
        assert changes(trainer), name
    return noted


if __name__ == "__main__":
    data, rank, ranks, store, output = sys.argv[1:]
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    if int(ranks) > 1:
        torch.distributed.init_process_group(
            "gloo", store=torch.distributed.FileStore(store, int(ranks)), rank=int(rank), world_size=int(ranks)
        )
    torch.save(run(data, int(rank), int(ranks)), output)
