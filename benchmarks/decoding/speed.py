"""Translate sentences of a test set with fairseq-generate and with CTranslate2, alternately, and compare the two.

Run: python -m benchmarks.decoding.speed RUN [--output results/speed/decoding.json]

RUN is a run directory of fairseq-sharing train. --sentences sentences, evenly spaced over the test set, are translated.
fairseq-generate reports its own time, which covers the search only; it runs with its fastest --max-tokens. CTranslate2
is timed from plain text to plain text, including preprocessing. In the mode "one by one", both translate one sentence
at a time, every --every-th of the sentences. Each round times every setting once; the table contains medians. "same" is
the share of sentences for which both return the same subwords.

With --clock cpu, both use one thread and CPU time is measured instead of wall time, so that the ratio is meaningful on
a busy machine.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.record import environment, write
from fairseq_sharing.decoding.ctranslate2_export import export
from fairseq_sharing.decoding.model_files import ModelFiles, find_model
from fairseq_sharing.decoding.search import Search
from fairseq_sharing.decoding.translator import Translator
from fairseq_sharing.evaluation.scoring import score
from fairseq_sharing.evaluation.sentence_depth import write_part
from fairseq_sharing.experiment.environment import cpu_cores
from fairseq_sharing.files import read_lines
from fairseq_sharing.preparation.manifest import read_manifest
from fairseq_sharing.preparation.text import Pipeline
from fairseq_sharing.resources import PACKAGE_DIR
from fairseq_sharing.terminal import Console

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
# fairseq-generate, whose stopwatch uses the clock given as the first argument.
GENERATE = """
import sys, time
from fairseq.logging import meters
meters.time = type("time", (), {"perf_counter": staticmethod(getattr(time, sys.argv.pop(1)))})
from fairseq_cli.generate import cli_main
cli_main()
"""
MAX_TOKENS = (1000, 2000, 4000, 8000)
TYPES = ("float32", "int8")
BATCH_TOKENS = (128, 256, 512, 1024, 2048)  # of CTranslate2
TOLD = re.compile(r"Translated [\d,]+ sentences \([\d,]+ tokens\) in ([\d.]+)s")


@dataclass
class Task:
    """The model, test set, search options, clock and device."""

    files: ModelFiles
    subset: str
    search: Search
    clock: str
    device: str

    @property
    def cores(self) -> int:
        return 1 if self.clock == "cpu" else cpu_cores()


def read_test(files: ModelFiles, name: str | None) -> tuple[dict[str, Any], list[str], list[str]]:
    """Return a test set of a model's data by name, or the first one, with its sources and references."""
    assert files.manifest is not None
    tests = read_manifest(files.manifest, ("tests",))["tests"]
    test = next(test for test in tests if name in (None, test["name"]))
    return test, *(list(read_lines(files.manifest / test[side])) for side in ("source", "reference"))


def spread(total: int, wanted: int) -> list[int]:
    """Return the numbers of ``wanted`` sentences, evenly spaced over all."""
    count = min(wanted, total)
    return [number * total // count for number in range(count)]


def choose(files: ModelFiles, subset: str, chosen: Sequence[int], folder: Path) -> ModelFiles:
    """Write the chosen sentences of a binarized test set to a new data directory for fairseq-generate."""
    assert files.dictionaries is not None
    folder.mkdir()
    write_part(files.dictionaries, subset, list(files.languages.values()), chosen, folder)
    return replace(files, dictionaries=folder)


@dataclass
class Generated:
    """Output of fairseq-generate: sentences per second, and sentence number -> hypothesis in subwords."""

    speed: float
    hypotheses: dict[int, str]


def parse_generated(printed: str) -> tuple[float, dict[int, str]]:
    """Return the seconds of the search and the hypotheses by sentence, given the output of fairseq-generate."""
    clock = TOLD.search(printed)
    assert clock is not None, printed[-2000:]
    rows = [line[2:].split("\t") for line in printed.split("\n") if line.startswith("H-")]
    return float(clock[1]), {int(number): text for number, _, text in rows}


def generate(task: Task, threads: int, *batch: str) -> Generated:
    """Run fairseq-generate."""
    files, search = task.files, task.search
    words = [str(files.dictionaries), "--path", str(files.checkpoints[0]), "--gen-subset", task.subset]
    words += ["--task", "translation", "--user-dir", str(PACKAGE_DIR), "--no-progress-bar"]
    words += ["--cpu"] if task.device == "cpu" else []
    words += ["--beam", str(search.beam), "--lenpen", str(search.lenpen), *batch]
    command = [sys.executable, "-P", "-c", GENERATE, CLOCKS[task.clock].__name__, *words]
    threads_of = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=threads_of)
    seconds, hypotheses = parse_generated(done.stdout + done.stderr)
    return Generated(len(hypotheses) / seconds, hypotheses)


def fastest_setting(task: Task, sizes: Sequence[int]) -> dict[str, Any]:
    """Find the fastest setting of fairseq-generate: first 1 thread or all, then --max-tokens."""
    tried: dict[tuple[int, int], float] = {}

    def fastest(settings: list[tuple[int, int]]) -> tuple[int, int]:
        if len(settings) == 1:
            return settings[0]
        for threads, size in settings:
            if (threads, size) not in tried:
                tried[threads, size] = generate(task, threads, "--max-tokens", str(size)).speed
        return max(settings, key=lambda setting: tried[setting])

    threads, _ = fastest([(threads, sizes[0]) for threads in sorted({1, task.cores})])
    threads, size = fastest([(threads, size) for size in sizes])
    rows = [{"threads": t, "max_tokens": size, "speed": round(speed, 1)} for (t, size), speed in tried.items()]
    return {"threads": threads, "max_tokens": size, "tried": rows}


def timed(translator: Translator, lines: list[str], task: Task, one_by_one: bool) -> float:
    """Translate lines; return sentences per second."""
    clock = CLOCKS[task.clock]
    start = clock()
    for part in [[line] for line in lines] if one_by_one else [lines]:
        translator.hypotheses(part, task.search)
    return len(lines) / (clock() - start)


def engine_speed(engine: Any, parts: list[list[list[str]]], size: int, search: Search) -> float:
    """Translate lists of sentences in turn with CTranslate2, in batches of so many subwords; return sentences/s."""
    settings = {"beam_size": search.beam, "length_penalty": search.lenpen, "max_decoding_length": search.max_len_b}
    start = time.perf_counter()
    for part in parts:
        engine.translate_batch(part, max_batch_size=size, batch_type="tokens", **settings)
    return sum(map(len, parts)) / (time.perf_counter() - start)


def threads_table(folder: Path, lines: list[list[str]], search: Search) -> list[dict[str, Any]]:
    """Time CTranslate2 on subwords once, for each way to divide the cores between batches and threads."""
    import ctranslate2

    cores = cpu_cores()
    divisions = sorted({(1, 1), (cores, 1), (1, cores)})
    engines = {
        (kind, *division): ctranslate2.Translator(
            str(folder), compute_type=kind, inter_threads=division[0], intra_threads=division[1]
        )
        for kind in TYPES
        for division in divisions
    }
    rows = []
    for (kind, batches, threads), engine in engines.items():
        for load, some in (("together", [lines[::4]]), ("one by one", [[line] for line in lines[::40]])):
            speed = round(engine_speed(engine, some, 512, search), 1)
            rows.append(
                {"type": kind, "batches": batches, "threads": threads, "load": load, "sentences_per_second": speed}
            )
    return rows


def batches_table(folder: Path, lines: list[list[str]], search: Search, rounds: int) -> list[dict[str, Any]]:
    """Time CTranslate2 on subwords, for several numbers of source subwords per batch."""
    import ctranslate2

    engines = {
        kind: ctranslate2.Translator(str(folder), compute_type=kind, inter_threads=cpu_cores(), intra_threads=1)
        for kind in TYPES
    }
    measured: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for kind, engine in engines.items():
            for size in BATCH_TOKENS:
                measured.setdefault((kind, size), []).append(engine_speed(engine, [lines], size, search))
    return [
        {"type": kind, "tokens": size, "sentences_per_second": _median(values)}
        for (kind, size), values in measured.items()
    ]


def agreement(
    wanted: list[str], found: list[str], references: list[str], decode: Callable[[str], str]
) -> dict[str, float]:
    """Compare hypotheses in subwords with those of fairseq-generate."""
    return {
        "same": sum(one == other for one, other in zip(found, wanted, strict=True)) / len(wanted),
        "bleu": round(score([decode(line) for line in found], references)["bleu"], 3),
    }


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 1)


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure everything and return the result."""
    files = find_model(args.model, args.data, Console(stderr=True))
    test, lines, references = read_test(files, args.test)
    search = Search(beam=args.beam, lenpen=args.lenpen)
    exported = export(files, folder / "model")
    chosen = spread(len(lines), args.sentences)
    few = choose(files, test["subset"], chosen[:: args.every], folder / "few")
    files = choose(files, test["subset"], chosen, folder / "data")
    lines, references = ([text[number] for number in chosen] for text in (lines, references))

    task = Task(files, test["subset"], search, args.clock, args.device)
    fastest = fastest_setting(task, args.max_tokens)
    ways = {
        "together": (task, lines, ("--max-tokens", str(fastest["max_tokens"]))),
        "one by one": (replace(task, files=few), lines[:: args.every], ("--batch-size", "1")),
    }
    translators = {
        kind: Translator(exported.path, quantization=kind, threads=task.cores, device=task.device) for kind in TYPES
    }
    for translator in translators.values():
        translator.hypotheses(lines[:50], search)  # warm-up: the first use loads libraries
    measured: dict[tuple[str, str], list[float]] = {}
    for number in range(args.rounds):
        for load, (asked, some, batch) in ways.items():
            made = generate(asked, fastest["threads"], *batch)
            measured.setdefault(("fairseq-generate", load), []).append(made.speed)
            if load == "together":
                wanted = [made.hypotheses[sentence] for sentence in range(len(lines))]
            for kind, translator in translators.items():
                speed = timed(translator, some, task, load == "one by one")
                measured.setdefault((f"CTranslate2 {kind}", load), []).append(speed)
        told = ", ".join(f"{engine} {load} {speeds[-1]:.1f}" for (engine, load), speeds in measured.items())
        print(f"round {number + 1} of {args.rounds}, sentences/s: {told}", file=sys.stderr)

    assert files.manifest is not None
    pipeline = Pipeline.from_manifest(files.manifest)
    prepared = [pipeline.encode(line) for line in lines]
    compared = {}
    for kind in TYPES:
        plain = Translator(exported.path, quantization=kind, prepared=True, device=task.device)
        found = plain.translate(prepared, beam=search.beam, lenpen=search.lenpen)
        compared[kind] = agreement(wanted, found, references, pipeline.decode)
    baseline = {load: statistics.median(measured["fairseq-generate", load]) for load in ways}
    result = {
        **environment(),
        "model": {"name": Path(args.model).name, "bytes": exported.size, "tensors": exported.tensors},
        "test": {"name": test["name"], "sentences": len(lines)},
        "search": {"beam": search.beam, "lenpen": search.lenpen},
        "rounds": args.rounds,
        "clock": args.clock,
        "device": args.device,
        "fairseq_generate": fastest,
        "speed": [
            {
                "engine": engine,
                "load": load,
                "sentences_per_second": _median(values),
                "least": round(min(values), 1),
                "most": round(max(values), 1),
                "ratio": round(statistics.median(values) / baseline[load], 2),
            }
            for (engine, load), values in measured.items()
        ],
        "bleu_of_fairseq_generate": agreement(wanted, wanted, references, pipeline.decode)["bleu"],
        "agreement": compared,
    }
    if args.clock == "wall" and args.device == "cpu":
        subwords = [line.split() for line in prepared]
        result["batches"] = batches_table(exported.path, subwords, search, args.rounds)
        result["threads"] = threads_table(exported.path, subwords, search)
    return result


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    print(f"{'engine':22} {'load':11} {'sentences/s':>12} {'least':>7} {'most':>7} {'ratio':>6}")
    for row in result["speed"]:
        numbers = f"{row['sentences_per_second']:12.1f} {row['least']:7.1f} {row['most']:7.1f} {row['ratio']:6.2f}"
        print(f"{row['engine']:22} {row['load']:11} {numbers}")
    print(f"\nBLEU of fairseq-generate {result['bleu_of_fairseq_generate']:.2f}")
    for kind, found in result["agreement"].items():
        print(f"{kind}: BLEU {found['bleu']:.2f}, same hypotheses {100 * found['same']:.1f}%")
    if "threads" not in result:
        return
    print(f"\n{'type':8} {'tokens per batch':>16} {'sentences/s':>12}")
    for row in result["batches"]:
        print(f"{row['type']:8} {row['tokens']:16,} {row['sentences_per_second']:12.1f}")
    print(f"\n{'type':8} {'batches':>7} {'threads':>7} {'load':11} {'sentences/s':>12}")
    for row in result["threads"]:
        head = f"{row['type']:8} {row['batches']:7} {row['threads']:7} {row['load']:11}"
        print(f"{head} {row['sentences_per_second']:12.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="RUN", help="run directory of fairseq-sharing train")
    parser.add_argument("--data", type=Path, help="prepared data directory, if it moved since training")
    parser.add_argument("--test", help="name of the test set (default: the first of the data)")
    parser.add_argument("--sentences", type=int, default=1000, help="number of sentences (default: 1000)")
    parser.add_argument("--beam", type=int, default=4, help="beam size (default: 4)")
    parser.add_argument("--lenpen", type=float, default=1.0, help="length penalty (default: 1.0)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default: 5)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="device (default: cpu)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="time to measure (default: wall)")
    parser.add_argument(
        "--max-tokens", type=int, nargs="+", default=MAX_TOKENS, help="values to try with fairseq-generate"
    )
    parser.add_argument("--every", type=int, default=5, help="interval of the sentences that are translated one by one")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args, Path(folder))
    show(result)
    write(result, args.output)


if __name__ == "__main__":
    main()
