"""One rank of a training at several depths: ``depths_rank.py DATA RANK RANKS STORE OUTPUT``.

Writes for each training the depth of each step and the weights after the last update.
"""

from __future__ import annotations

import logging
import sys

import torch
from fairseq.logging import metrics
from fairseq.models import distributed_fairseq_model
from scheduled_training import make_trainer, sample

# Training -> options of its model, flags. Without sharing, a smaller depth leaves parameters without a gradient.
RUNS = {
    "cycle": ({"sharing": "cycle", "unique_layers": 2, "depths": "2,3,4"}, ("--ddp-backend=c10d",)),
    "none": ({"sharing": "none", "depths": "1,2,4"}, ("--ddp-backend=legacy_ddp",)),
    "unused": ({"sharing": "none", "depths": "1,2,4"}, ("--ddp-backend=c10d", "--find-unused-parameters")),
    "aligned": (
        {"sharing": "cycle", "unique_layers": 2, "decoder_depths": "2,4", "depth_loss": "aligned"},
        ("--ddp-backend=c10d",),
    ),
}
UPDATES, MICRO_BATCHES = 3, 3  # micro-batches per update and rank
WORDS = ("--optimizer=sgd", "--lr=0.1")


def run(data: str, rank: int, ranks: int) -> dict[str, tuple]:
    """Train and record everything."""
    noted = {}
    for name, (options, words) in RUNS.items():
        trainer = make_trainer(
            data, *WORDS, *words, f"--distributed-world-size={ranks}", "--update-freq=3", task="translation", **options
        )
        model = trainer.get_model()
        steps: list[list[int]] = []
        draw = model.draw_depth

        def drawing(update, model=model, steps=steps, draw=draw):
            draw(update)
            model.train()
            steps.append([len(stack.active) for stack in model.stacks.values()])

        model.draw_depth = drawing
        for update in range(UPDATES):
            # The ranks' batches of one micro-batch are consecutive.
            parts = [sample(100 * update + part) for part in range(MICRO_BATCHES * 2)]
            mine = parts[rank::2] if ranks > 1 else parts
            with metrics.aggregate():
                trainer.train_step(mine)
        noted[name] = (steps, {n: p.detach().clone() for n, p in model.named_parameters()})
    return noted


if __name__ == "__main__":
    data, rank, ranks, store, output = sys.argv[1:]
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    wrapper = distributed_fairseq_model.DistributedDataParallel
    # fairseq passes device numbers, which torch refuses on a CPU.
    distributed_fairseq_model.DistributedDataParallel = lambda device_ids, output_device, **kw: wrapper(**kw)
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(store, int(ranks)), rank=int(rank), world_size=int(ranks)
    )
    torch.save(run(data, int(rank), int(ranks)), output)
