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
faults = []
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_a_freed_tensor_s_pages_are_used_again():
    told = {}
    for way in ("kept", "returned"):
        done = subprocess.run([sys.executable, "-c", CODE, way], check=True, capture_output=True, text=True)
        told[way] = [int(number) for number in done.stdout.split()]
    (kept, most), (returned, least) = told["kept"], told["returned"]
    assert kept < 100 < returned
    # At most ten of the twenty tensors of 64 MiB: glibc joins the space of tensors only after several were freed.
    assert most - least < 10 * 64 * 1024
