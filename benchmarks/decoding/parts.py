"""Measure where decoding time goes: the steps around CTranslate2's search, and the operations of fairseq's search.

Run: python -m benchmarks.decoding.parts RUN [--test NAME] [--output results/speed/decoding_parts.json]

It uses the same sentences as benchmarks/decoding/speed.py. Seconds are medians of --rounds passes; the data types
alternate. Preprocessed words are cached, so the medians are those of a program that has been running for a while.
fairseq's search is profiled once, with one thread, on the first --profiled sentences.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.decoding.speed import TYPES, read_test, spread
from benchmarks.record import environment, write
from benchmarks.training.process import profile
from fairseq_sharing.decoding.ctranslate2_engine import CTranslate2Engine
from fairseq_sharing.decoding.ctranslate2_export import export
from fairseq_sharing.decoding.fairseq_engine import FairseqEngine
from fairseq_sharing.decoding.model_files import find_model
from fairseq_sharing.decoding.search import Search
from fairseq_sharing.experiment.environment import cpu_cores
from fairseq_sharing.preparation.text import Pipeline
from fairseq_sharing.terminal import Console

PARTS = ("prepare", "search", "detokenize")


def one_pass(engine: CTranslate2Engine, pipeline: Pipeline, lines: list[str], search: Search) -> dict[str, float]:
    """Translate lines; return the seconds of each part."""
    clock = [time.perf_counter()]
    tokens = [pipeline.encode(line).split() for line in lines]
    clock.append(time.perf_counter())
    found = dict(engine.translate(tokens, search))
    clock.append(time.perf_counter())
    for hypotheses in found.values():
        pipeline.decode(hypotheses[0].text)
    clock.append(time.perf_counter())
    return {part: end - start for part, (start, end) in zip(PARTS, itertools.pairwise(clock), strict=True)}


def main() -> None:
    """Time the steps, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="RUN", help="run directory of fairseq-sharing train")
    parser.add_argument("--test", help="name of the test set (default: the first of the data)")
    parser.add_argument("--sentences", type=int, default=1000, help="number of sentences (default: 1000)")
    parser.add_argument("--profiled", type=int, default=100, help="sentences of the profile (default: 100)")
    parser.add_argument("--beam", type=int, default=4, help="beam size (default: 4)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default: 5)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    files = find_model(args.model, None, Console(stderr=True))
    assert files.manifest is not None
    test, lines, _ = read_test(files, args.test)
    lines = [lines[number] for number in spread(len(lines), args.sentences)]
    pipeline, search = Pipeline.from_manifest(files.manifest), Search(beam=args.beam)
    result: dict[str, Any] = {**environment(), "test": test["name"], "sentences": len(lines), "rounds": args.rounds}
    with tempfile.TemporaryDirectory() as folder:
        exported = find_model(str(export(files, Path(folder) / "model").path), None, Console(stderr=True))
        assert exported.exported is not None
        assert exported.max_tokens is not None
        engines = {
            kind: CTranslate2Engine(exported.exported, exported.max_tokens, kind, cpu_cores(), "cpu") for kind in TYPES
        }
        passes: dict[str, list[dict[str, float]]] = {kind: [] for kind in TYPES}
        for _ in range(args.rounds):
            for kind, engine in engines.items():
                passes[kind].append(one_pass(engine, pipeline, lines, search))
    result["seconds"] = {
        kind: {part: round(statistics.median(found[part] for found in some), 3) for part in some[0]}
        for kind, some in passes.items()
    }
    tokens = [pipeline.encode(line).split() for line in lines[: args.profiled]]
    fairseq = FairseqEngine(files, 1, "cpu")
    result["fairseq_operations"] = profile(lambda: list(fairseq.translate(tokens, search)))
    for kind, parts in result["seconds"].items():
        print(f"{kind:8}", ", ".join(f"{part} {seconds:.2f} s" for part, seconds in parts.items()))
    print(", ".join(f"{name} {share:.1%}" for name, share in list(result["fairseq_operations"].items())[:12]))
    write(result, args.output)


if __name__ == "__main__":
    main()
