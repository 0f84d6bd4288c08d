"""Time training with other memory allocators of the C library, alternately in the same run.

Run: python -m benchmarks.training.allocators --data data/news_commentary [--output results/speed/allocators.json]
Every update uses another batch, so that the memory of the last run shows whether a process grows. The model is that of
benchmarks.training.speed with 6 layers. Debian packages: libjemalloc2, libtcmalloc-minimal4.
"""

from __future__ import annotations

import argparse
import ctypes.util
from pathlib import Path

from benchmarks.record import environment, write
from benchmarks.training.process import Side
from benchmarks.training.speed import flags
from fairseq_sharing.experiment.environment import cpu_cores

# Name -> shared library, and environment variables.
ALLOCATORS: dict[str, tuple[str | None, dict[str, str]]] = {
    "glibc": (None, {}),
    "tcmalloc": ("tcmalloc_minimal", {}),
    # Freed memory is kept: without these settings, jemalloc returns large blocks at once.
    "jemalloc": ("jemalloc", {"MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1,oversize_threshold:0"}),
}


def variables(name: str) -> dict[str, str]:
    """Return the environment variables that select an allocator.

    Raises:
        SystemExit: its library is not installed.
    """
    library, settings = ALLOCATORS[name]
    if library is None:
        return {}
    found = ctypes.util.find_library(library)
    if found is None:
        raise SystemExit(f"{name}: the library {library} is not installed")
    return {"LD_PRELOAD": found, **settings}


def main() -> None:
    """Time all allocators alternately, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a prepared data directory")
    parser.add_argument("--threads", type=int, default=cpu_cores(), help="number of CPU threads (default: all cores)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16", help="precision (default: bf16)")
    parser.add_argument("--batches", type=int, default=8, help="updates per timed run (default: 8)")
    parser.add_argument("--runs", type=int, default=3, help="timed runs of each (default: 3)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    words = flags(str(args.data / "bin"), True, 6, [], "cpu", args.precision)
    sides = {name: Side(words, args.threads, args.batches, variables(name)) for name in ALLOCATORS}
    for _ in range(args.runs):
        for side in sides.values():
            side.time()
    rows = {}
    for name, side in sides.items():
        growth = side.runs[-1]["peak_bytes"] / side.runs[0]["peak_bytes"]
        rows[name] = {**side.close(), "growth": growth}
        rows[name]["to_glibc"] = rows[name]["tokens_per_second"] / rows["glibc"]["tokens_per_second"]
        print(
            f"{name:9} {rows[name]['tokens_per_second']:8.0f} tokens/s, {rows[name]['to_glibc']:.2f}x of glibc; "
            f"peak {rows[name]['peak_bytes'] / 1e9:.2f} GB, {growth:.2f} times that of the first run"
        )
    settings = {"threads": args.threads, "precision": args.precision, "runs": args.runs, "updates_a_run": args.batches}
    write({**environment(), **settings, "rows": rows}, args.output)


if __name__ == "__main__":
    main()
