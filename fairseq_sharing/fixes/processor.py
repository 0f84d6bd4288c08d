"""Fixes for torch on some processors and GPUs."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

# The CPUID leaf that reports the sizes of AMX tiles.
_AMX_TILE_LEAF = 0x1D


def avoid_unusable_amx(cpuinfo: str = "/proc/cpuinfo") -> None:
    """Disable AMX in oneDNN on a virtual machine that reports the AMX flags but not the tile sizes.

    On such a machine, oneDNN configures no tiles, and the first bf16 product ends the process with an illegal
    instruction. Call this before the first matrix product of the process. An existing ONEDNN_MAX_CPU_ISA is kept.

    Args:
        cpuinfo: Linux's description of the processor; nothing is done if it does not exist.
    """
    try:
        described = Path(cpuinfo).read_text()
    except OSError:
        return
    levels = re.findall(r"^cpuid level\s*: (\d+)$", described, flags=re.MULTILINE)
    if "amx_tile" in described.split() and levels and int(levels[0]) < _AMX_TILE_LEAF:
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16")


def avoid_cudnn_attention() -> None:
    """Disable cuDNN's attention in torch, which creates a new plan for each batch shape."""
    torch.backends.cuda.enable_cudnn_sdp(False)
