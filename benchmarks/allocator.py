"""Time training on a CPU with glibc's own settings and with those that `fairseq-sharing train` gives it, in turn.

Run: python benchmarks/allocator.py --data data/multi30k [--output results/speed/allocator.json]

Each configuration trains in two processes that differ in nothing but these settings.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from record import environment, write
from training_process import Side

from fairseq_sharing.resources import PACKAGE_DIR
from fairseq_sharing.training.allocator import TUNABLES
from fairseq_sharing.training.config import compose, fairseq_arguments


def in_turn(config: str, args: argparse.Namespace) -> dict:
    """Time one configuration both ways."""
    words = [str(args.data / "bin"), "--user-dir", str(PACKAGE_DIR), *fairseq_arguments(compose(config).train)]
    words += ["--distributed-world-size", "1", "--cpu"]
    sides = {
        name: Side(words, args.threads, args.batches, {"GLIBC_TUNABLES": tunables})
        for name, tunables in (("plain", ""), ("kept", TUNABLES))
    }
    for _ in range(args.runs):
        for side in sides.values():
            side.time()
    measured = {name: side.close() for name, side in sides.items()}
    ratio = measured["kept"]["tokens_per_second"] / measured["plain"]["tokens_per_second"]
    return {**measured, "ratio": ratio}


def main() -> None:
    """Time all configurations, print the ratios and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a prepared data directory")
    parser.add_argument(
        "--configs", nargs="+", default=[f"multi30k/{row}.yaml" for row in ("vanilla", "cycle", "moeut")]
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--batches", type=int, default=4, help="updates of a timed turn")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    rows = {}
    for config in args.configs:
        rows[config] = told = in_turn(config, args)
        memory = ", ".join(f"{name} {told[name]['peak_bytes'] / 1e9:.2f} GB" for name in ("plain", "kept"))
        print(f"{config:24} {told['ratio']:.2f}x the tokens/s of glibc's own settings; peak {memory}", flush=True)
    settings = {"threads": args.threads, "updates_a_run": args.batches, "runs": args.runs, "tunables": TUNABLES}
    write({**environment(), **settings, "configurations": rows}, args.output)


if __name__ == "__main__":
    main()
