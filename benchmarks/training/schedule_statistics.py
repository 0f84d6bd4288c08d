"""Measure the cost of the gradient statistics of share-then-unshare: updates with and without gradients per layer.

Run: python -m benchmarks.training.schedule_statistics [--output results/changing_sharing/memory/unit_gradients.json]
The model is that of the study on Multi30k: 6+6 layers that share one set, d_model 128, d_ffn 256, batches of 4,096
tokens. Updates with and without statistics alternate in one process. Times are CPU times, which other load affects
least.
"""

import argparse
import json
import logging
import platform
import statistics
import tempfile
import time
from pathlib import Path

WORDS = [
    *("--task=translation_sharing", "--source-lang=en", "--target-lang=de", "--cpu", "--optimizer=adam"),
    *("--arch=transformer_sharing_tiny", "--sharing=universal", "--share-all-embeddings", "--max-tokens=4096"),
    *("--encoder-layers=6", "--decoder-layers=6", "--encoder-embed-dim=128", "--decoder-embed-dim=128"),
    *("--encoder-ffn-embed-dim=256", "--decoder-ffn-embed-dim=256", "--encoder-attention-heads=4"),
    *("--decoder-attention-heads=4", "--sharing-schedule=unshare", "--unshare-when=correlation"),
    *("--unshare-interval=2", "--unshare-threshold=-1"),
]
VOCABULARY, SENTENCES, LENGTH = 9_808, 256, 16


def measure(updates: int) -> dict[str, object]:
    """Train with statistics in every second update; return seconds per update and the bytes of the statistics."""
    import torch
    from fairseq import options, tasks
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq.logging import metrics
    from fairseq.trainer import Trainer

    import fairseq_sharing
    from benchmarks.synthetic import write_dictionaries

    fairseq_sharing.register()
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        write_dictionaries(folder, VOCABULARY)
        args = options.parse_args_and_arch(options.get_training_parser(), [folder, *WORDS])
        cfg = convert_namespace_to_omegaconf(args)
        task = tasks.setup_task(cfg.task)
    torch.manual_seed(1)
    model = task.build_model(cfg.model)
    trainer = Trainer(cfg, task, model, task.build_criterion(cfg.criterion))
    tokens = torch.randint(4, VOCABULARY, (SENTENCES, LENGTH))
    sample = {
        **{"id": torch.arange(SENTENCES), "nsentences": SENTENCES, "ntokens": tokens.numel(), "target": tokens},
        "net_input": {
            "src_tokens": tokens,
            "src_lengths": torch.full((SENTENCES,), LENGTH),
            "prev_output_tokens": tokens.roll(1, 1),
        },
    }
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for update in range(1, updates + 3):
        began = time.process_time()
        with metrics.aggregate():
            trainer.train_step([sample])
        if update > 2:  # the first two allocate memory
            seconds[update % 2 == 0].append(time.process_time() - began)
    collected = sum(6 * sum(p.numel() for p in stack.layers[0].parameters()) for stack in model.stacks.values())
    plain, with_statistics = (statistics.median(seconds[collects]) for collects in (False, True))
    return {
        "seconds_plain": plain,
        "seconds_with_statistics": with_statistics,
        "ratio": with_statistics / plain,
        "collected_bytes": 4 * collected,
    }


def main() -> None:
    """Measure, print and optionally write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=20, help="timed updates (default: 20)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    import torch

    result = {
        "machine": {"processor": platform.machine(), "system": platform.system(), "device": "cpu"},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "threads": torch.get_num_threads(),
        "updates": args.updates,
        **measure(args.updates),
    }
    print(json.dumps(result, indent=2))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
