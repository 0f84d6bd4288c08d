"""Decode one sentence at a time with Sequence and Cycle: is a layer faster if it has just been used?

Run: python -m benchmarks.decoding.layer_reuse [--output results/speed/layer_reuse.json]

Sequence uses each of M = 6 parameter sets twice in a row; Cycle uses the five other sets in between. Both models have
12+12 layers and random weights. Every translation is exactly 20 subwords long, so both models do the same work. They
are timed alternately per sentence, in CTranslate2 with one thread and in CPU time, which other load hardly affects. The
table contains medians.
"""

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import ctranslate2
import torch
from fairseq.data import Dictionary

import fairseq_sharing
from benchmarks.record import environment, write
from fairseq_sharing.decoding.ctranslate2_export import convert

LAYERS, UNIQUE, LENGTH, VOCABULARY = 12, 6, 20, 8000
SIZES = {"d 128": 128, "d 512": 512}
TYPES = ("float32", "int8")
STRATEGIES = ("sequence", "cycle")


def make(strategy: str, embed_dim: int, kind: str, folder: Path) -> ctranslate2.Translator:
    """Build a translator with random weights from a fixed seed."""
    from fairseq_sharing.models.transformer_sharing import TransformerSharingModel

    dictionary = Dictionary()
    for number in range(VOCABULARY - len(dictionary)):
        dictionary.add_symbol(f"w{number}")
    task = argparse.Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    options = argparse.Namespace(sharing=strategy, unique_layers=UNIQUE, share_all_embeddings=True)
    for stack in ("encoder", "decoder"):
        setattr(options, f"{stack}_layers", LAYERS)
        setattr(options, f"{stack}_embed_dim", embed_dim)
        setattr(options, f"{stack}_ffn_embed_dim", 4 * embed_dim)
        setattr(options, f"{stack}_attention_heads", embed_dim // 32)
    torch.manual_seed(1)
    with torch.no_grad():
        spec, _ = convert(TransformerSharingModel.build_model(options, task).eval(), task, strategy)
    spec.optimize(kind)
    folder.mkdir(parents=True)
    spec.save(str(folder))
    return ctranslate2.Translator(str(folder), compute_type=kind, intra_threads=1)


def compare(embed_dim: int, kind: str, sentences: list[list[str]], beam: int, folder: Path) -> dict[str, Any]:
    """Time both strategies alternately; return milliseconds per sentence and the ratios of Cycle to Sequence."""
    translators = {strategy: make(strategy, embed_dim, kind, folder / strategy) for strategy in STRATEGIES}
    times: dict[str, list[float]] = {strategy: [] for strategy in STRATEGIES}
    for number, sentence in enumerate(sentences):
        # The first strategy leaves data in the caches, so the order alternates.
        for strategy in STRATEGIES if number % 2 else reversed(STRATEGIES):
            start = time.process_time()
            translators[strategy].translate_batch(
                [sentence], beam_size=beam, min_decoding_length=LENGTH, max_decoding_length=LENGTH
            )
            times[strategy].append(1000 * (time.process_time() - start))
    ratios = [cycle / sequence for cycle, sequence in zip(times["cycle"][2:], times["sequence"][2:], strict=True)]
    found = {f"{strategy}_ms": round(statistics.median(values[2:]), 2) for strategy, values in times.items()}
    quartiles = [round(value, 3) for value in statistics.quantiles(ratios)]
    return {"embed_dim": embed_dim, "type": kind, **found, "cycle_to_sequence_quartiles": quartiles}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=60, help="number of sentences (default: 60)")
    parser.add_argument("--beam", type=int, default=4, help="beam size (default: 4)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    fairseq_sharing.register()
    draw = random.Random(1)
    sentences = [[f"w{draw.randrange(VOCABULARY - 4)}" for _ in range(LENGTH)] for _ in range(args.sentences)]
    rows = []
    print(f"{'size':6} {'type':8} {'Sequence ms':>12} {'Cycle ms':>9}  Cycle / Sequence (quartiles)")
    for name, embed_dim in SIZES.items():
        for kind in TYPES:
            with tempfile.TemporaryDirectory() as folder:
                row = compare(embed_dim, kind, sentences, args.beam, Path(folder))
            rows.append(row)
            told = " ".join(f"{value:.3f}" for value in row["cycle_to_sequence_quartiles"])
            print(f"{name:6} {kind:8} {row['sequence_ms']:12.2f} {row['cycle_ms']:9.2f}  {told}", flush=True)
    settings = {"layers": LAYERS, "unique_layers": UNIQUE, "length": LENGTH, "beam": args.beam}
    write({**environment(), **settings, "sentences": args.sentences, "rows": rows}, args.output)


if __name__ == "__main__":
    main()
