"""Freed memory is kept for the next tensor."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from fairseq_sharing.fast.memory import keep_freed_memory
if sys.argv[1] == "kept" and not keep_freed_memory():
    sys.exit(3)
torch.ones(1 << 24)
begin = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begin)
"""


def page_faults(setting):
    """Count the pages that four tensors of 64 MiB, one after another, get from the system."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, setting], capture_output=True, text=True)
    if done.returncode == 3:
        pytest.skip("the C library is not glibc")
    return int(done.stdout)


def test_a_freed_tensor_s_memory_is_reused_without_new_pages():
    pages = 4 * (1 << 26) // resource.getpagesize()
    assert page_faults("kept") < 0.01 * pages
    # What the setting avoids: glibc returns large blocks to the system.
    assert page_faults("returned") > 0.9 * pages
