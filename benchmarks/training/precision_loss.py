"""Train the same run in fp32 and in bf16 with several seeds, and compare the final validation losses.

Run: python -m benchmarks.training.precision_loss --runs runs/precision [--output results/speed/precision_loss.json]

The runs train benchmarks/training/precision.yaml on data/multi30k; finished runs are not trained again. With
--after-epoch nothing is trained, and the losses after that epoch are compared, for runs that were stopped early.
Validation uses fp32. A bf16 run and the fp32 run of the same seed start from the same weights and use the same batches,
so the difference is that of pairs, with the interval of Student's t.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from scipy import stats

from benchmarks.record import write
from fairseq_sharing.evaluation.training_log import summarize
from fairseq_sharing.experiment.run_directory import RunDirectory

CONFIG = "benchmarks/training/precision.yaml"


def train(precision: str, seed: int, runs: Path, changes: list[str]) -> None:
    """Train or resume a run."""
    path = runs / f"{precision}-seed{seed}"
    words = [CONFIG, f"seed={seed}", f"train.precision={precision}", *changes, "--out", str(path)]
    subprocess.run([sys.executable, "-P", "-m", "fairseq_sharing", "train", *words], check=True)


def compare(fp32: list[float], bf16: list[float]) -> dict[str, Any]:
    """Compare the losses of runs with equal seeds, in nats: mean difference bf16 - fp32 and its 95% interval."""
    differences = [math.log(2) * (low - high) for high, low in zip(fp32, bf16, strict=True)]
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    half = float(stats.t.ppf(0.975, len(differences) - 1)) * error
    mean = statistics.mean(differences)
    return {"mean": mean, "interval": [mean - half, mean + half], "pairs": len(differences), "differences": differences}


def main() -> None:
    """Train all runs, print and write their losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="directory of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="seeds, at least two")
    parser.add_argument(
        "--after-epoch", type=int, metavar="N", help="do not train; compare the losses after this epoch"
    )
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="overrides of the configuration")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    final: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for precision, losses in final.items():
        for seed in args.seeds:
            if args.after_epoch is None:
                train(precision, seed, args.runs, args.changes)
            run = RunDirectory(args.runs / f"{precision}-seed{seed}")
            curve = summarize(run.log_records()).valid
            last = args.after_epoch or len(curve["loss"])
            row: dict[str, Any] = {"updates": curve["updates"][:last], "valid_loss": curve["loss"][:last]}
            rows.append({"precision": precision, "seed": seed, **row})
            losses.append(row["valid_loss"][-1])
            print(f"{precision} seed {seed}: validation loss {losses[-1]:.3f}", flush=True)
    spread = {name: {"mean": statistics.mean(one), "sd": statistics.stdev(one)} for name, one in final.items()}
    difference = compare(final["fp32"], final["bf16"])
    low, high = difference["interval"]
    print(f"bf16 - fp32: {difference['mean']:+.4f} nats [{low:+.4f}, {high:+.4f}] ({difference['pairs']} pairs)")
    record = run.record()
    write(
        {
            "machine": record["device"],
            "versions": record["versions"],
            "commit": record["commit"],
            "config": CONFIG,
            "changes": args.changes,
            "after_epoch": args.after_epoch if args.after_epoch != run.config().train.max_epoch else None,
            "runs": rows,
            "spread": spread,
            "difference_in_nats": difference,
        },
        args.output,
    )


if __name__ == "__main__":
    main()
