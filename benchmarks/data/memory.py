"""Measure the peak memory of data preparation for a corpus and for a corpus ten times as large.

Run: python -m benchmarks.data.memory --data data/news_commentary [--output FILE.json] [FLAG ...]
Further flags are passed to fairseq-sharing prepare. --subword-size 2000 saves time and does not change the memory.
The corpus is the raw training text of a prepared directory, once and ten times in a row: ten times the lines, the same
words. A peak is the sum of the resident memory of all processes, so memory that they share counts once per process.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS = {"raw": "read", "tok": "tokenize", "bpe": "segment", "bin": "binarize"}
CORPUS = "    - {{en: {{path: {raw}/train.en}}, de: {{path: {raw}/train.de}}}}\n"
RECIPE = """
source_lang: en
target_lang: de
splits:
  train:
{train}
  valid: {{en: {{path: {raw}/valid.en}}, de: {{path: {raw}/valid.de}}}}
"""


def resident(process: int) -> int:
    """Add up the resident memory of a process and its descendants, in bytes."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        children = [
            int(child)
            for task in Path(f"/proc/{process}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(map(resident, children))


def step(out: Path) -> str:
    """Return the name of the running step, given by the file that is being written."""
    growing = [path.parent.name for path in out.glob("*/train*.tmp")]
    return STEPS[growing[0]] if growing else "count and learn, and between steps"


def measure(times: int, raw: Path, flags: list[str], folder: Path) -> dict:
    """Prepare the corpus, repeated ``times`` times; return lines, seconds and peaks."""
    recipe, out = folder / f"times{times}.yaml", folder / f"times{times}"
    recipe.write_text(RECIPE.format(train=CORPUS.format(raw=raw) * times, raw=raw))
    command = [sys.executable, "-m", "fairseq_sharing", "prepare", str(recipe), "--out", str(out), *flags]
    peaks: dict[str, int] = {}
    start = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            now = step(out)
            peaks[now] = max(peaks.get(now, 0), resident(process.pid))
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"prepare failed: {' '.join(command)}")
    manifest = json.loads((out / "manifest.json").read_text())
    return {
        "lines": manifest["train"]["raw_lines"],
        "seconds": time.perf_counter() - start,
        "peak_bytes": max(peaks.values()),
        "peak_bytes_by_step": peaks,
    }


def main() -> None:
    """Measure both sizes and print the peaks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="prepared directory")
    parser.add_argument("--times", type=int, default=10, help="size of the larger corpus (default: 10)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args, flags = parser.parse_known_args()

    raw = (args.data / "raw").resolve()
    with tempfile.TemporaryDirectory() as folder:
        sizes = [measure(times, raw, flags, Path(folder)) for times in (1, args.times)]
    print(f"{'':36}" + "".join(f"{size['lines']:>12,}" for size in sizes) + "  lines")
    for name in (*sizes[0]["peak_bytes_by_step"], None):
        peaks = [size["peak_bytes_by_step"].get(name, 0) if name else size["peak_bytes"] for size in sizes]
        print(f"{name or 'all':36}" + "".join(f"{peak / 2**20:12,.0f}" for peak in peaks) + "  MiB")
    print(f"{'time':36}" + "".join(f"{size['seconds']:12,.0f}" for size in sizes) + "  s")
    if args.output:
        result = {
            "machine": {"processor": platform.machine(), "processors": len(os.sched_getaffinity(0))},
            "versions": {"python": platform.python_version()},
            "flags": flags,
            "sizes": sizes,
        }
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
