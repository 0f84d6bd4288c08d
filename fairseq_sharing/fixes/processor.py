"""Fixes of torch on some processors and GPUs."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

# The CPUID leaf that tells the sizes of AMX's tiles.
_AMX_TILE_LEAF = 0x1D


def avoid_half_hidden_amx(cpuinfo: str = "/proc/cpuinfo") -> None:
    """Keep oneDNN from AMX on a virtual machine that shows its flags but hides the sizes of its tiles.

    There oneDNN configures no tiles and the first bf16 product ends the process with an illegal instruction. Works
    until the process's first matrix product; a set ONEDNN_MAX_CPU_ISA is left alone.

    Args:
        cpuinfo: Linux's description of the processor; where there is none, nothing is done.
    """
    try:
        described = Path(cpuinfo).read_text()
    except OSError:
        return
    levels = re.findall(r"^cpuid level\s*: (\d+)$", described, flags=re.MULTILINE)
    if "amx_tile" in described.split() and levels and int(levels[0]) < _AMX_TILE_LEAF:
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16")


def avoid_cudnn_attention() -> None:
    """Keep torch from cuDNN's attention, which plans anew for each shape of a batch."""
    torch.backends.cuda.enable_cudnn_sdp(False)
