"""Time data preparation against sacremoses, subword-nmt apply-bpe and fairseq-preprocess in sequence.

Run: python -m benchmarks.data.preparation --data data/news_commentary [--output results/data_prep/speed.json]
Each of the three programs runs in one process. Both sides of a training text are normalized, tokenized, segmented with
the same merges and binarized, alternately by the three programs and by this package. The tokenized, segmented and
binary files must be identical. Learning the merges is not timed.
"""

import argparse
import filecmp
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

LANGUAGES = ("en", "de")
VALID_LINES = 100  # for fairseq-preprocess, which requires a validation text

RECIPE = """
source_lang: en
target_lang: de
splits:
  train: {en: {path: train.en}, de: {path: train.de}}
  valid: {en: {path: valid.en}, de: {path: valid.de}}
cleaning: none
subword: {name: bpe, codes: codes.bpe}
"""

# sacremoses' functions: its command keeps the line feed, so it does not recognize a quote at the end of a line.
MOSES = """
import sys
from sacremoses import MosesPunctNormalizer, MosesTokenizer
normalizer, tokenizer = MosesPunctNormalizer(sys.argv[1]), MosesTokenizer(sys.argv[1])
sys.stdin.reconfigure(newline="\\n")
for line in sys.stdin:
    print(*tokenizer.tokenize(normalizer.normalize(line.removesuffix("\\n")), escape=False))
"""


def seconds(command: list[str], folder: Path, source: Path | None = None, target: Path | None = None) -> dict:
    """Run Python; return its wall and processor seconds."""
    environment = {**os.environ, "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}
    with open(source or os.devnull, "rb") as read, open(target or os.devnull, "wb") as write:
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(
            [sys.executable, *command],
            cwd=folder,
            env=environment,
            stdin=read,
            stdout=write,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"wall": wall, "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def plain(texts: Path, out: Path) -> dict[str, dict]:
    """Run the three programs; return the seconds of each."""
    for folder in ("tok", "bpe"):
        (out / folder).mkdir(parents=True)
    stages: dict[str, dict] = {"sacremoses": {"wall": 0, "cpu": 0}, "subword-nmt": {"wall": 0, "cpu": 0}}
    for lang in LANGUAGES:
        raw, tok, bpe = texts / f"train.{lang}", out / f"tok/train.{lang}", out / f"bpe/train.{lang}"
        steps = {
            "sacremoses": (["-c", MOSES, lang], raw, tok),
            "subword-nmt": (["-m", "subword_nmt.apply_bpe", "-c", str(texts / "codes.bpe")], tok, bpe),
        }
        for name, (command, source, target) in steps.items():
            stages[name] = add(stages[name], seconds(command, out, source, target))
        head(bpe, out / f"bpe/valid.{lang}", VALID_LINES)
    command = ["-m", "fairseq_cli.preprocess", "--source-lang", "en", "--target-lang", "de", "--joined-dictionary"]
    command += ["--trainpref", "bpe/train", "--validpref", "bpe/valid", "--destdir", "bin", "--workers", "1"]
    stages["fairseq-preprocess"] = seconds(command, out)
    (out / "bin/preprocess.log").unlink()
    return stages


def prepare(texts: Path, out: Path, workers: int | None) -> dict[str, dict]:
    """Run fairseq-sharing prepare; return its seconds."""
    command = ["-m", "fairseq_sharing", "prepare", str(texts / "recipe.yaml"), "--out", str(out)]
    return {"fairseq-sharing prepare": seconds([*command, *(["--workers", str(workers)] if workers else [])], texts)}


def add(one: dict, other: dict) -> dict:
    return {key: one[key] + other[key] for key in one}


def head(source: Path, target: Path, lines: int) -> None:
    """Copy the first lines of a text."""
    with source.open("rb") as read, target.open("wb") as write:
        write.writelines(itertools.islice(read, lines))


def check(one: Path, other: Path) -> int:
    """Compare all files of the three programs with ours; return their number."""
    files = [str(path.relative_to(one)) for path in sorted(one.rglob("*")) if path.is_file()]
    different = [name for name in files if not filecmp.cmp(one / name, other / name, shallow=False)]
    if different:
        raise SystemExit(f"these files differ: {', '.join(different)}")
    return len(files)


def main() -> None:
    """Time both alternately, check that their files are identical, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="prepared directory: its raw training text and merges")
    parser.add_argument("--lines", type=int, default=100_000, help="number of sentence pairs (default: 100,000)")
    parser.add_argument("--runs", type=int, default=3, help="timed runs of each (default: 3)")
    parser.add_argument("--workers", type=int, help="processes of fairseq-sharing prepare (default: all CPU cores)")
    parser.add_argument("--note", default="", help="other load on the machine, to be recorded")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()

    runs = []
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "texts"
        texts.mkdir()
        (texts / "recipe.yaml").write_text(RECIPE)
        (texts / "codes.bpe").write_bytes((args.data / "codes.bpe").read_bytes())
        for lang in LANGUAGES:
            head(args.data.absolute() / f"raw/train.{lang}", texts / f"train.{lang}", args.lines)
            head(texts / f"train.{lang}", texts / f"valid.{lang}", VALID_LINES)
        for number in range(args.runs):
            outs = Path(folder) / f"plain{number}", Path(folder) / f"ours{number}"
            stages = {**plain(texts, outs[0]), **prepare(texts, outs[1], args.workers)}
            same = check(*outs)
            chain = sum(stage["wall"] for name, stage in stages.items() if not name.startswith("fairseq-sharing"))
            runs.append({"stages": stages, "ratio": chain / stages["fairseq-sharing prepare"]["wall"]})

    table = {
        name: {kind: statistics.median(run["stages"][name][kind] for run in runs) for kind in ("wall", "cpu")}
        for name in runs[0]["stages"]
    }
    packages = ("sacremoses", "subword-nmt", "fairseq-fixed", "tokenizers")
    result = {
        "lines": args.lines,
        "runs": args.runs,
        "machine": {"processor": platform.machine(), "processors": len(os.sched_getaffinity(0)), "note": args.note},
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}},
        "identical_files": same,
        "seconds": table,
        "ratios": [run["ratio"] for run in runs],
        "ratio": statistics.median(run["ratio"] for run in runs),
    }
    print(f"{'':24} {'wall s':>8} {'CPU s':>8}")
    for name, stage in table.items():
        print(f"{name:24} {stage['wall']:8.1f} {stage['cpu']:8.1f}")
    print(f"{same} identical files; the three programs take {result['ratio']:.2f} times as long")
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
