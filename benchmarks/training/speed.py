"""Time training against stock fairseq: tokens/s of whole updates, each pair alternately in the same run.

Run: python -m benchmarks.training.speed --data data/news_commentary [--output results/speed/training.json]
The sizes are those of the paper's base model: d_model 512, d_ffn 2048, 8 heads, dropout 0.1, shared embeddings, and
batches of 4,096 target tokens of real sentences. Stock fairseq runs without this package, in --stock-precision.
Afterwards, one update of each side is profiled: the time shares of its operations.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from benchmarks.record import environment, write
from benchmarks.training.process import Side
from fairseq_sharing.experiment.environment import cpu_cores

SHARED = ["--sharing", "cycle_rev", "--unique-layers", "6"]
FAST = ["--fast", "--optimizer", "fused_adam", "--criterion", "fused_label_smoothed_cross_entropy"]
PLAIN = ["--optimizer", "adam", "--criterion", "label_smoothed_cross_entropy"]
# Pair -> our options, our number of layers, that of stock fairseq.
PAIRS = {
    "6 layers": ([], 6, 6),
    "12 layers": ([], 12, 12),
    "12 shared against 6 vanilla": (SHARED, 12, 6),
}


def flags(
    data: str,
    ours: bool,
    layers: int,
    options: list[str],
    device: str,
    precision: str,
    path: list[str] | None = None,
    width: int = 512,
) -> list[str]:
    """Return the flags of fairseq-train for one side of a pair; ``path`` replaces the flags of the fast path."""
    words = [data, "--task", "translation", "--source-lang", "en", "--target-lang", "de", "--max-tokens", "4096"]
    words += ["--encoder-layers", str(layers), "--decoder-layers", str(layers), "--share-all-embeddings"]
    words += ["--dropout", "0.1", "--label-smoothing", "0.1", "--adam-betas", "(0.9,0.98)", "--lr", "0.0005"]
    words += ["--lr-scheduler", "inverse_sqrt", "--warmup-updates", "4000", "--distributed-world-size", "1"]
    for stack in ("encoder", "decoder"):
        words += [f"--{stack}-embed-dim", str(width), f"--{stack}-ffn-embed-dim", str(4 * width)]
        words += [f"--{stack}-attention-heads", str(width // 64)]
    words += ["--cpu"] if device == "cpu" else []
    if not ours:
        return [*words, "--arch", "transformer", *PLAIN, *([f"--{precision}"] if precision != "fp32" else [])]
    plugin = Path(__file__).resolve().parents[2] / "fairseq_sharing"
    words += ["--user-dir", str(plugin), "--arch", "transformer_sharing", "--precision", precision]
    return [*words, *(FAST if path is None else path), *options]


def matmul_peak(device: str, threads: int, precision: str) -> float:
    """Measure the speed of a large matrix product, in FLOP/s: the best of six repetitions."""
    import torch

    torch.set_num_threads(threads)
    size = 4096 if device == "cpu" else 8192
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        began = time.perf_counter()
        a @ b
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def training_flops(layers: int, vocabulary: int, width: int) -> int:
    """Count the floating-point operations of an update per target token, with equally many source tokens.

    Only matrix products with weights are counted, three times the forward pass; attention adds a few percent.
    """
    # Attention has 4 matrices of width x width, twice in a decoder layer; feed-forward has 2 of width x 4 width.
    return 6 * (layers * (4 + 8 + 2 * 8) * width * width + width * vocabulary)


def main() -> None:
    """Time all pairs, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a prepared data directory")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="device to train on (default: cpu)")
    parser.add_argument("--threads", type=int, default=cpu_cores(), help="number of CPU threads (default: all cores)")
    parser.add_argument("--batches", type=int, default=4, help="updates per timed run")
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each (default: 5)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16", help="precision of this package")
    parser.add_argument(
        "--stock-precision", choices=["fp32", "fp16", "bf16", "amp"], default="fp32", help="precision of stock fairseq"
    )
    parser.add_argument(
        "--width", type=int, default=512, help="d_model; d_ffn is 4 times as wide, heads have 64 channels"
    )
    parser.add_argument("--compile", action="store_true", help="use --compile for this package")
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS), help="pairs to time (default: all)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    data = args.data / "bin"
    vocabulary = 4 + len((data / "dict.de.txt").read_text(encoding="utf-8").splitlines())
    rows, peaks = {}, []
    for name in args.pairs:
        options, layers, stock_layers = PAIRS[name]
        options = [*options, "--compile"] if args.compile else options
        ours = flags(str(data), True, layers, options, args.device, args.precision, width=args.width)
        stock = flags(str(data), False, stock_layers, [], args.device, args.stock_precision, width=args.width)
        sides = [Side(words, args.threads, args.batches) for words in (ours, stock)]
        for _ in range(args.runs):
            peaks.append(matmul_peak(args.device, args.threads, args.precision))
            for side in sides:
                side.time()
        profiles = [side.profile() for side in sides]
        measured, peer = ({**side.close(), "profile": told} for side, told in zip(sides, profiles, strict=True))
        ratio = measured["tokens_per_second"] / peer["tokens_per_second"]
        rows[name] = {"ours": measured, "fairseq": peer, "ratio": ratio}
        print(
            f"{name:28} {measured['tokens_per_second']:9.0f} tokens/s, fairseq {peer['tokens_per_second']:9.0f}: "
            f"{ratio:.2f}x",
            flush=True,
        )
    peak = statistics.median(peaks)
    for name, row in rows.items():
        flops = training_flops(PAIRS[name][1], vocabulary, args.width)
        row["share_of_matmul_peak"] = row["ours"]["tokens_per_second"] * flops / peak
        print(f"{name:28} {row['share_of_matmul_peak']:.0%} of the peak of matrix products")
    write(
        {
            **environment(),
            "device": args.device,
            "threads": args.threads,
            "precision": {"ours": args.precision, "fairseq": args.stock_precision},
            "width": args.width,
            "compile": args.compile,
            "runs": args.runs,
            "updates_a_run": args.batches,
            "vocabulary": vocabulary,
            "matmul_peak_flops": peak,
            "pairs": rows,
        },
        args.output,
    )


if __name__ == "__main__":
    main()
