"""Time how long commands take to start, beside importing torch and fairseq, in turn in the same run.

Run: python -m benchmarks.commands.start RUN --data data/toy [--output results/speed/start.json]

RUN is a run directory of a translation model; DATA the prepared data of the study toy. "train" stops after its first
update. Wall time contains what other work on the machine takes; processor time hardly does.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from benchmarks.record import environment, write
from fairseq_sharing.experiment.environment import cpu_cores

PEER = "import torch, fairseq"
FIRST_UPDATE = ("train.max_update=1", "train.disable_validation=true", "train.no_save=true")


def commands(run: Path, data: Path, folder: Path) -> dict[str, list[str]]:
    """Return the timed commands by name; they may write below the folder."""
    line = folder / "line"
    line.write_text("A dog runs .\n", encoding="utf-8")
    ours = [sys.executable, "-m", "fairseq_sharing"]
    toy = ["toy", "row=cycle_rev", "--data", str(data)]
    return {
        PEER: [sys.executable, "-c", PEER],
        "--help": [*ours, "--help"],
        "describe toy row=cycle_rev": [*ours, "describe", *toy],
        "translate, one line": [*ours, "translate", str(run), str(line)],
        "train toy row=cycle_rev, first update": [*ours, "train", *toy, "--out", str(folder / "run"), *FIRST_UPDATE],
    }


def clock(command: Sequence[str], variables: Mapping[str, str]) -> tuple[float, float]:
    """Run a command; return its wall time and processor time in seconds."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, env=variables, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Time all commands in turn, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("--data", type=Path, required=True, help="the prepared data of the study toy")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, after one that is not timed (default: 5)")
    parser.add_argument("--threads", type=int, default=cpu_cores(), help="number of CPU threads (default: all cores)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    variables = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    times: dict[str, list[tuple[float, float]]] = {}
    for number in range(args.rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            for name, command in commands(args.run.resolve(), args.data.resolve(), Path(folder)).items():
                taken = clock(command, variables)
                if number:
                    times.setdefault(name, []).append(taken)
    rows = {}
    peer = median(wall for wall, _ in times[PEER])
    for name, pairs in times.items():
        wall, processor = median(wall for wall, _ in pairs), median(processor for _, processor in pairs)
        ratio = wall / peer
        rows[name] = {"wall_seconds": wall, "cpu_seconds": processor, "ratio": ratio}
        print(f"{wall:6.2f} s, {processor:6.2f} s of processor time, {ratio:5.2f} times the imports  {name}")
    write({**environment(), "threads": args.threads, "rounds": args.rounds, "rows": rows}, args.output)


if __name__ == "__main__":
    main()
