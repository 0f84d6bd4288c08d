"""Measure the static memory of 48 layers per stack that share one set, until and after untying, against vanilla.

Run: python -m benchmarks.memory.static [--output results/changing_sharing/memory/static.json]
Each training uses fairseq's trainer in a new process: Adam, fp32, updates on one small batch. Measured are the bytes of
weights, gradients and Adam's two moments, and the growth of the resident memory.
The sizes are those of the paper's base model: d_model 512, d_ffn 2048, 32,768 shared embeddings.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

TRAININGS = {
    "vanilla": {"sharing": "none", "words": []},
    "share, then unshare": {
        "sharing": "universal",
        "words": ["--sharing-schedule=unshare", "--unshare-at=2"],
    },
    "dynamic tying": {
        "sharing": "none",
        "words": ["--sharing-schedule=dynamic", "--dynamic-interval=2", "--dynamic-policy=random"],
    },
}
UPDATES = 4


def resident() -> int:
    """Return the resident memory of this process, in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def train(name: str, layers: int, vocabulary: int, folder: str) -> list[dict]:
    """Train for some updates in this process; return bytes and parameters after each."""
    import ctypes
    import gc
    import logging

    import torch
    from fairseq import options, tasks
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq.logging import metrics
    from fairseq.trainer import Trainer

    import fairseq_sharing
    from benchmarks.synthetic import write_dictionaries
    from fairseq_sharing.schedules.change_sharing import measure_bytes

    fairseq_sharing.register()
    logging.disable(logging.INFO)
    write_dictionaries(folder, vocabulary)
    training = TRAININGS[name]
    words = [folder, "--task=translation_sharing", "--source-lang=en", "--target-lang=de", "--cpu"]
    words += ["--arch=transformer_sharing", "--share-all-embeddings", f"--sharing={training['sharing']}"]
    words += [f"--encoder-layers={layers}", f"--decoder-layers={layers}", "--optimizer=adam", "--max-tokens=100"]
    cfg = convert_namespace_to_omegaconf(
        options.parse_args_and_arch(options.get_training_parser(), [*words, *training["words"]])
    )
    task = tasks.setup_task(cfg.task)
    before = resident()
    torch.manual_seed(1)
    model = task.build_model(cfg.model)
    trainer = Trainer(cfg, task, model, task.build_criterion(cfg.criterion))
    tokens = torch.tensor([[5, 6, 7, 2]])
    sample = {
        **{"id": torch.tensor([0]), "nsentences": 1, "ntokens": 4, "target": tokens},
        "net_input": {"src_tokens": tokens, "src_lengths": torch.tensor([4]), "prev_output_tokens": tokens.roll(1, 1)},
    }
    if task.engine is not None:
        task._loss.measure = lambda *_: 1.0  # any reward for dynamic tying
    told = []
    for update in range(1, UPDATES + 1):
        with metrics.aggregate():
            trainer.train_step([sample])
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        told.append(
            {
                "update": update,
                "parameters": sum(p.numel() for p in model.parameters()),
                "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
                "sets": {stack: len(set(s.layer_map)) for stack, s in model.sharing.items()},
                "bytes": measure_bytes(model, trainer.optimizer),
                "resident_bytes": resident() - before,
            }
        )
    return told


def main() -> None:
    """Measure all trainings and print their memory after each update."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=48, help="layers per stack (default: 48)")
    parser.add_argument("--vocabulary", type=int, default=32_768, help="dictionary size (default: 32768)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--train", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(train(args.train, args.layers, args.vocabulary, folder)))
        return

    measured = {}
    for name in TRAININGS:
        command = [sys.executable, "-m", __spec__.name, "--train", name]
        command += ["--layers", str(args.layers), "--vocabulary", str(args.vocabulary)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        measured[name] = json.loads(told.splitlines()[-1])
    import torch

    result = {
        "machine": {"processor": platform.machine(), "system": platform.system(), "device": "cpu"},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "layers": args.layers,
        "vocabulary": args.vocabulary,
        "trainings": measured,
    }
    print(
        f"{'training':20} {'update':>6} {'sets':>9} {'weights':>9} {'gradients':>9} {'moments':>9} {'resident':>9}  MiB"
    )
    for name, updates in measured.items():
        for row in updates:
            sizes = (*(row["bytes"][part] for part in ("weights", "gradients", "optimizer")), row["resident_bytes"])
            shown = " ".join(f"{size / 2**20:9.1f}" for size in sizes)
            print(f"{name:20} {row['update']:6} {'+'.join(map(str, row['sets'].values())):>9} {shown}")
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
