"""Measure the validation loss of a checkpoint with ``fairseq-validate`` and read its output."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairseq_sharing.checkpoints.arguments import task_arguments
from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.environment import torch_threads
from fairseq_sharing.resources import PACKAGE_DIR


def validation_command(checkpoint: Mapping[str, Any], path: Path, data: str) -> list[str]:
    """Return the command that measures the validation loss of a checkpoint.

    Args:
        checkpoint: the content of the file; its batch size and task are used.
        path: the file.
        data: the binarized data.
    """
    task = task_arguments(checkpoint)
    dataset = (checkpoint.get("cfg") or {}).get("dataset") or {}
    words = ["fairseq-validate", data, "--user-dir", str(PACKAGE_DIR), "--path", str(path)]
    # fairseq-validate has no default task.
    words += ["--task", str(task.get("_name") or task.get("task") or "translation")]
    sizes = {name: dataset.get(f"{name}_valid") or dataset.get(name) for name in ("max_tokens", "batch_size")}
    if not any(sizes.values()):
        sizes["max_tokens"] = 4096
    return words + [str(w) for name, n in sizes.items() if n for w in (f"--{name.replace('_', '-')}", n)]


def validate(command: Sequence[str]) -> dict[str, float]:
    """Run fairseq-validate on the validation set.

    Args:
        command: the result of ``validation_command``.

    Returns:
        The numbers that it reports, for example ``loss`` and ``nll_loss`` (both in bits) and ``ppl``.

    Raises:
        SharingError: fairseq-validate failed or reported no loss.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch_threads()), "PYTHONUTF8": "1"}
    # -P: like fairseq-validate itself, do not import modules from the current directory.
    words = [*command[1:], "--log-format", "json", "--no-progress-bar"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "fairseq_cli.validate", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        lines = [line.strip() for line in done.stdout.split("\n") if line.strip()] or ["no message"]
        raise SharingError(f"{shlex.join(command)} failed: {lines[-1]}")
    return read_validation(done.stdout)


def read_validation(output: str) -> dict[str, float]:
    """Read the numbers that fairseq-validate reports at its end.

    Args:
        output: its output with ``--log-format json``.

    Raises:
        SharingError: there is no loss in it.
    """
    found = re.findall(r"\| valid \| (\{.*\})\s*$", output, flags=re.MULTILINE)
    values = json.loads(found[-1]) if found else {}
    if "valid_loss" not in values:
        raise SharingError("fairseq-validate reported no loss")
    return {name.removeprefix("valid_"): float(value) for name, value in values.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
