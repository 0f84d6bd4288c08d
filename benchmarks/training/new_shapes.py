"""Time attention on batches that all have different shapes, with and without cuDNN's kernels.

Run: python -m benchmarks.training.new_shapes [--output results/speed/new_shapes.json]
Requires a GPU. Forward and backward passes in bf16 with a padding mask and 4 heads of 32 channels.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from benchmarks.record import environment, write


def seconds(number: int) -> float:
    """Time one forward and backward pass; each number gives another shape."""
    batch, length = 200 + number, 17 + number
    x = torch.randn(batch, 4, length, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    mask = torch.zeros(batch, 1, 1, length, device="cuda", dtype=torch.bfloat16)
    torch.cuda.synchronize()
    began = time.perf_counter()
    F.scaled_dot_product_attention(x, x, x, attn_mask=mask).sum().backward()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    """Time both, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=int, default=12, help="number of shapes (default: 12)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    found = {}
    for name, allowed in (("without cuDNN", False), ("with cuDNN", True)):
        torch.backends.cuda.enable_cudnn_sdp(allowed)
        found[name] = [round(1000 * seconds(number), 1) for number in range(args.shapes)]
        print(f"{name}: {found[name]} ms")
    write({**environment(), "milliseconds": found}, args.output)


if __name__ == "__main__":
    main()
