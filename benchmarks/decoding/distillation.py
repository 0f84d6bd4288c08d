"""Translate training sentences with fairseq-generate and with distill, alternately, and compare their speed.

Run: python -m benchmarks.decoding.distillation RUN [--output results/speed/distillation.json]

RUN is a run directory of fairseq-sharing train. The first --sentences training pairs of its data are translated. Both
commands are timed as a user sees them: from the start of the process to its end, including imports, loading the model,
for distill also the export to CTranslate2 and writing the data. Each round runs both once; the table contains medians.
CPU seconds are those of all processes of a command. "search_only" is the
speed that fairseq-generate reports for itself, without imports and loading.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.decoding.speed import parse_generated
from benchmarks.record import environment, write
from fairseq_sharing.decoding.model_files import ModelFiles, find_model
from fairseq_sharing.experiment.environment import cpu_cores
from fairseq_sharing.files import sha256
from fairseq_sharing.preparation.binarize import data_names, read_dictionary, token_type, write_index
from fairseq_sharing.preparation.transform import number_chunk
from fairseq_sharing.resources import PACKAGE_DIR
from fairseq_sharing.terminal import Console

COMMANDS = ("fairseq-generate", "distill")


def first_pairs(data: Path, sentences: int, folder: Path) -> Path:
    """Copy a prepared data directory with only the first training pairs."""
    shutil.copytree(data, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    languages = [manifest["source_lang"], manifest["target_lang"]]
    for language, name in zip(languages, data_names("train", languages), strict=True):
        text, dictionary = folder / f"bpe/train.{language}", folder / f"bin/dict.{language}.txt"
        with text.open("rb") as lines:
            kept = b"".join(islice(lines, sentences))
        text.write_bytes(kept)
        (tokens, lengths), _ = number_chunk(dictionary, "", (kept,))
        (folder / f"bin/{name}.bin").write_bytes(tokens)
        counted = folder / "lengths"
        counted.write_bytes(lengths)
        write_index(counted, token_type(len(read_dictionary(dictionary))), folder / f"bin/{name}.idx")
        counted.unlink()
        manifest["files"][f"bpe/train.{language}"] = sha256(text)
        for ending in ("bin", "idx"):
            manifest["files"][f"bin/{name}.{ending}"] = sha256(folder / f"bin/{name}.{ending}")
    manifest["train"]["lines"] = sentences
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def timed(command: list[str], threads: int) -> tuple[float, float, str]:
    """Run a command; return its wall time and CPU time in seconds, and what it printed."""
    variables = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(PACKAGE_DIR.parent)}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=variables)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, done.stdout + done.stderr


def generate(files: ModelFiles, data: Path, args: argparse.Namespace, threads: int) -> dict[str, Any]:
    """Run fairseq-generate on the training text."""
    words = [str(data / "bin"), "--path", str(files.checkpoints[0]), "--gen-subset", "train", "--task", "translation"]
    words += ["--user-dir", str(PACKAGE_DIR), "--no-progress-bar", "--cpu", "--beam", str(args.beam)]
    words += ["--max-tokens", str(args.max_tokens)]
    wall, cpu, printed = timed([sys.executable, "-P", "-m", "fairseq_cli.generate", *words], threads)
    seconds, found = parse_generated(printed)
    return {"wall": wall, "cpu": cpu, "search": seconds, "texts": [text for _, text in sorted(found.items())]}


def distill(data: Path, args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Run distill on the training text."""
    shutil.rmtree(out, ignore_errors=True)
    words = ["distill", args.model, "--data", str(data), "--out", str(out), "--beam", str(args.beam)]
    words += ["--filter", "none", "--workers", str(args.workers)]
    wall, cpu, _ = timed([sys.executable, "-P", "-m", "fairseq_sharing", *words], 1)
    lines = (out / "translations" / "train.tsv").read_text().split("\n")[:-1]
    return {"wall": wall, "cpu": cpu, "texts": [line.split("\t", 2)[2] for line in lines]}


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure everything and return the result."""
    files = find_model(args.model, args.data, Console(stderr=True))
    assert files.manifest is not None
    data = first_pairs(files.manifest, args.sentences, folder / "data")
    threads = [1] if args.workers == 1 else [1, args.workers]
    tried = {count: generate(files, data, args, count)["wall"] for count in threads}
    fastest = min(tried, key=lambda count: tried[count])
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in COMMANDS}
    for number in range(args.rounds):
        rounds["fairseq-generate"].append(generate(files, data, args, fastest))
        rounds["distill"].append(distill(data, args, folder / "out"))
        told = ", ".join(f"{name} {args.sentences / found[-1]['wall']:.1f}" for name, found in rounds.items())
        print(f"round {number + 1} of {args.rounds}, sentences/s: {told}", file=sys.stderr)
    wanted, found = (rounds[name][-1]["texts"] for name in COMMANDS)
    speed = {
        name: {
            clock: round(args.sentences / statistics.median(one[clock] for one in runs), 1) for clock in ("wall", "cpu")
        }
        for name, runs in rounds.items()
    }
    search = statistics.median(one["search"] for one in rounds["fairseq-generate"])
    return {
        **environment(),
        "model": Path(args.model).name,
        "sentences": args.sentences,
        "beam": args.beam,
        "workers": args.workers,
        "rounds": args.rounds,
        "fairseq_generate": {
            "threads": fastest,
            "max_tokens": args.max_tokens,
            "search_only": round(args.sentences / search, 1),
        },
        "sentences_per_second": speed,
        "ratio": {
            clock: round(speed["distill"][clock] / speed["fairseq-generate"][clock], 2) for clock in ("wall", "cpu")
        },
        "same": sum(one == other for one, other in zip(wanted, found, strict=True)) / args.sentences,
    }


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    print(f"{'command':18} {'sentences/s':>12} {'per CPU second':>15}")
    for name, speed in result["sentences_per_second"].items():
        print(f"{name:18} {speed['wall']:12.1f} {speed['cpu']:15.1f}")
    print(f"{'ratio':18} {result['ratio']['wall']:12.2f} {result['ratio']['cpu']:15.2f}")
    print(f"same targets {100 * result['same']:.1f}%")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="RUN", help="run directory of fairseq-sharing train")
    parser.add_argument("--data", type=Path, help="prepared data directory, if it moved since training")
    parser.add_argument("--sentences", type=int, default=1000, help="number of sentences (default: 1000)")
    parser.add_argument("--beam", type=int, default=5, help="beam size (default: 5)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default: 5)")
    parser.add_argument("--workers", type=int, default=cpu_cores(), help="processes of distill (default: all cores)")
    parser.add_argument("--max-tokens", type=int, default=4000, help="of fairseq-generate (default: 4000)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args, Path(folder))
    show(result)
    write(result, args.output)


if __name__ == "__main__":
    main()
