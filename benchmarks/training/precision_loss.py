"""Train the same run in fp32 with several seeds and in bf16, and compare the final validation losses.

Run: python -m benchmarks.training.precision_loss --runs runs/precision [--output results/speed/precision_loss.json]

The runs train benchmarks/training/precision.yaml on data/multi30k; finished runs are not trained again. With
--after-epoch nothing is trained, and the losses after that epoch are compared, for runs that were stopped early.
Validation uses fp32. A bf16 run and the fp32 run of the same seed start from the same weights and use the same batches.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.record import write
from fairseq_sharing.evaluation.training_log import summarize
from fairseq_sharing.experiment.run_directory import RunDirectory

CONFIG = "benchmarks/training/precision.yaml"


def train(precision: str, seed: int, runs: Path, changes: list[str]) -> None:
    """Train or resume a run."""
    path = runs / f"{precision}-seed{seed}"
    words = [CONFIG, f"seed={seed}", f"train.precision={precision}", *changes, "--out", str(path)]
    subprocess.run([sys.executable, "-P", "-m", "fairseq_sharing", "train", *words], check=True)


def main() -> None:
    """Train all runs, print and write their losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="directory of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds of the fp32 runs")
    parser.add_argument("--bf16-seeds", type=int, nargs="+", default=[1], help="seeds of the bf16 runs")
    parser.add_argument(
        "--after-epoch", type=int, metavar="N", help="do not train; compare the losses after this epoch"
    )
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="overrides of the configuration")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for precision, seeds in (("fp32", args.seeds), ("bf16", args.bf16_seeds)):
        for seed in seeds:
            if args.after_epoch is None:
                train(precision, seed, args.runs, args.changes)
            run = RunDirectory(args.runs / f"{precision}-seed{seed}")
            curve = summarize(run.log_records()).valid
            last = args.after_epoch or len(curve["loss"])
            losses = {"updates": curve["updates"][:last], "valid_loss": curve["loss"][:last]}
            record = run.record()
            row = {"precision": precision, "seed": seed, **losses}
            rows.append(row)
            print(f"{precision} seed {seed}: validation loss {row['valid_loss'][-1]:.3f}", flush=True)
    final = {p: [row["valid_loss"][-1] for row in rows if row["precision"] == p] for p in ("fp32", "bf16")}
    mean, deviation = statistics.mean(final["fp32"]), statistics.stdev(final["fp32"])
    within = [min(final["fp32"]) <= loss <= max(final["fp32"]) for loss in final["bf16"]]
    spread = f"{min(final['fp32']):.3f} to {max(final['fp32']):.3f}"
    print(f"fp32: mean {mean:.3f}, standard deviation {deviation:.3f}, {spread}; bf16 within: {within}")
    summary = {"mean": mean, "standard_deviation": deviation, "least": min(final["fp32"]), "most": max(final["fp32"])}
    write(
        {
            "machine": record["device"],
            "versions": record["versions"],
            "commit": record["commit"],
            "config": CONFIG,
            "changes": args.changes,
            "after_epoch": args.after_epoch if args.after_epoch != run.config().train.max_epoch else None,
            "runs": rows,
            "fp32": summary,
        },
        args.output,
    )


if __name__ == "__main__":
    main()
