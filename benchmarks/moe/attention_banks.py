"""Measure attention's banks at several numbers of tokens: up to how many is it faster not to sort them?

Run: python -m benchmarks.moe.attention_banks [--output results/moeut/speed-gpu-attention.json]

All back-ends but the loop are run in turn, forward and backward; told are medians of tokens a second. The rule of
``choose_backend`` is made from it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import fairseq_sharing
from benchmarks.moe.speed import LENGTH, Setting, attention, size_of
from benchmarks.record import environment, write


class WithoutLoop(Setting):
    """A setting without the loop, which is the slowest by far on a GPU."""

    @property
    def backends(self) -> list[str]:
        """Those that run there."""
        return [name for name in super().backends if name != "loop"]


def main() -> None:
    """Measure and print; write JSON where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["244m", "44m"], help="of the language models; or tiny")
    parser.add_argument("--tokens", nargs="+", type=int, default=[1024, 4096, 8192, 16_384, 32_768, 65_536])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--runs", type=int, default=7, help="timed runs of each")
    parser.add_argument("--output", type=Path)
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
