"""Freed memory stays in the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

CODE = """
import resource, sys, torch
from fairseq_sharing.fast.freed_memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
torch.ones(1 << 25)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(1 << 25)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_a_freed_tensor_s_pages_are_used_again():
    faults = {
        way: int(subprocess.run([sys.executable, "-c", CODE, way], check=True, capture_output=True, text=True).stdout)
        for way in ("kept", "returned")
    }
    assert faults["kept"] < 100 < faults["returned"]
