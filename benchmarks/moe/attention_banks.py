"""Measure attention banks at several numbers of tokens: up to how many tokens is it faster not to sort them?

Run: python -m benchmarks.moe.attention_banks [--output results/moeut/speed-gpu-attention.json]

All backends except for the loop run alternately, forward and backward. The result contains medians in tokens per
second. ``choose_backend`` follows these measurements.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import fairseq_sharing
from benchmarks.moe.speed import LENGTH, Setting, attention, size_of
from benchmarks.record import environment, write


class WithoutLoop(Setting):
    """A setting without the loop, which is by far the slowest backend on a GPU."""

    @property
    def backends(self) -> list[str]:
        """The backends to measure."""
        return [name for name in super().backends if name != "loop"]


def main() -> None:
    """Measure, print and optionally write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["244m", "44m"], help="sizes of the language models, or tiny")
    parser.add_argument(
        "--tokens", nargs="+", type=int, default=[1024, 4096, 8192, 16_384, 32_768, 65_536], help="tokens per layer"
    )
    parser.add_argument("--device", default="cuda", help="cpu or cuda (default: cuda)")
    parser.add_argument("--runs", type=int, default=7, help="timed runs of each backend")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    for tokens in args.tokens:
        if tokens % LENGTH or tokens < LENGTH:
            parser.error(f"--tokens must be multiples of {LENGTH}, got {tokens}")
    fairseq_sharing.register()
    setting = WithoutLoop(args.device, bf16=args.device != "cpu")
    arguments = {name: value for name, value in vars(args).items() if name != "output"}
    result: dict = {**environment(), "arguments": arguments, "sizes": {}}
    for size in args.sizes:
        told = result["sizes"].setdefault(size, {})
        for tokens in args.tokens:
            torch.manual_seed(1)
            told[tokens] = attention(size_of(size)[0], tokens, args.runs, setting)
            speeds = {name: speed["forward_backward"] for name, speed in told[tokens]["tokens_per_second"].items()}
            print(f"{size}, {tokens:,} tokens: " + ", ".join(f"{name} {value:,.0f}" for name, value in speeds.items()))
    write(result, args.output)


if __name__ == "__main__":
    main()
