"""Time the training of the rows of the paper's table, relative to Vanilla, next to the paper's speeds.

Run: python -m benchmarks.training.row_speed --data data/news_commentary [--output results/speed/rows.json]

Each row trains as in the study wmt16_en_de (d_model 512 or 1024, dropout 0.3, the fast path), except for the tokens per
batch and the precision. Whole updates are timed alternately. --together rows and Vanilla are in memory at a time, and
the speed of a row is relative to that of Vanilla in the same group.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.record import environment, write
from benchmarks.training.process import Side
from fairseq_sharing.experiment.config import compose
from fairseq_sharing.experiment.environment import cpu_cores
from fairseq_sharing.flags import words as words_of
from fairseq_sharing.reporting.paper import ROWS
from fairseq_sharing.resources import PACKAGE_DIR


def flags(row: str, data: Path, device: str, precision: str, tokens: int) -> list[str]:
    """Return the flags of fairseq-train for a row."""
    config = compose("wmt16_en_de", [f"row={row}", f"train.precision={precision}", f"train.max_tokens={tokens}"])
    words = [str(data / "bin"), "--user-dir", str(PACKAGE_DIR), *words_of(config.train)]
    return [*words, "--distributed-world-size", "1", *(["--cpu"] if device == "cpu" else [])]


def in_turn(rows: Sequence[str], args: argparse.Namespace) -> dict[str, dict]:
    """Time rows alternately; the first is Vanilla."""
    sides = {}
    for row in rows:
        words = flags(row, args.data, args.device, args.precision, args.tokens)
        sides[row] = Side(words, args.threads, args.batches)
    for _ in range(args.runs):
        for side in sides.values():
            side.time()
    measured = {row: side.close() for row, side in sides.items()}
    for row, found in measured.items():
        relative = found["tokens_per_second"] / measured["vanilla"]["tokens_per_second"]
        found.update(relative=relative, paper=ROWS[row].speed)
    return measured


def main() -> None:
    """Time all rows, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="prepared data with a vocabulary of about 32,000")
    parser.add_argument(
        "--rows", nargs="+", choices=ROWS, default=list(ROWS), help="rows to time; vanilla is always included"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="device to train on (default: cpu)")
    parser.add_argument("--threads", type=int, default=cpu_cores(), help="number of CPU threads (default: all cores)")
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], default="fp32", help="precision of training (default: fp32)"
    )
    parser.add_argument("--tokens", type=int, default=1024, help="tokens per batch")
    parser.add_argument("--batches", type=int, default=1, help="updates per timed run")
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each (default: 5)")
    parser.add_argument("--together", type=int, default=4, help="rows per group, each timed alternately with Vanilla")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    others = [row for row in ROWS if row != "vanilla" and row in args.rows]
    measured: dict[str, dict] = {}
    for start in range(0, max(1, len(others)), args.together):
        measured = in_turn(["vanilla", *others[start : start + args.together]], args) | measured
    measured = {row: measured[row] for row in ROWS if row in measured}
    print(f"{'row':20} {'parameters':>12} {'tokens/s':>9} {'relative':>9} {'paper':>6}")
    for row, found in measured.items():
        told = "-" if found["paper"] is None else f"{found['paper']:.2f}"
        speed = f"{found['tokens_per_second']:9.0f} {found['relative']:9.2f}"
        print(f"{ROWS[row].title:20} {found['parameters']:12,} {speed} {told:>6}")
    settings = {"device": args.device, "threads": args.threads, "precision": args.precision}
    sizes = {"tokens": args.tokens, "batches": args.batches, "runs": args.runs}
    write({**environment(), **settings, **sizes, "rows": measured}, args.output)


if __name__ == "__main__":
    main()
