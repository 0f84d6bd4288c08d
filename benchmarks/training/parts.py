"""Time each part of the fast path: plain training, then with one more part at a time, alternately in the same run.

Run: python -m benchmarks.training.parts --data data/news_commentary [--output results/speed/training_parts.json]
The model is Cycle (rev), M = 6, N = 12 at d_model 512. The first row is transformer_sharing with fairseq's own layers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.record import environment, write
from benchmarks.training.process import Side
from benchmarks.training.speed import FAST, PLAIN, SHARED, flags
from fairseq_sharing.experiment.environment import cpu_cores

FUSED_LOSS = ["--criterion", "fused_label_smoothed_cross_entropy"]
# Later flags win.
PARTS = {
    "plain": PLAIN,
    "+ --fast": [*PLAIN, "--fast"],
    "+ the fused loss": [*PLAIN, "--fast", *FUSED_LOSS],
    "+ fused_adam": FAST,
    "+ --compile": [*FAST, "--compile"],
}


def main() -> None:
    """Time all parts alternately, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a prepared data directory")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="device to train on (default: cpu)")
    parser.add_argument("--threads", type=int, default=cpu_cores(), help="number of CPU threads (default: all cores)")
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], default="fp32", help="precision of training (default: fp32)"
    )
    parser.add_argument("--tokens", type=int, default=2048, help="tokens per batch")
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each (default: 5)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="parts to time (default: all)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    sides = {}
    for part in args.parts:
        words = flags(str(args.data / "bin"), True, 12, SHARED, args.device, args.precision, PARTS[part])
        sides[part] = Side([*words, "--max-tokens", str(args.tokens)], args.threads, 1)
    for _ in range(args.runs):
        for side in sides.values():
            side.time()
    rows = {part: side.close() for part, side in sides.items()}
    first = before = next(iter(rows.values()))["tokens_per_second"]
    for part, row in rows.items():
        speed = row["tokens_per_second"]
        row.update(to_plain=speed / first, to_before=speed / before)
        print(f"{part:18} {speed:8.0f} tokens/s, {speed / first:.2f}x of plain, {speed / before:.2f}x of the row above")
        before = speed
    settings = {"device": args.device, "threads": args.threads, "precision": args.precision}
    write({**environment(), **settings, "tokens": args.tokens, "runs": args.runs, "rows": rows}, args.output)


if __name__ == "__main__":
    main()
