"""The machine and versions that every benchmark records."""

import json
import os
from pathlib import Path
from typing import Any

from fairseq_sharing.experiment.environment import commit, device, versions


def environment() -> dict[str, Any]:
    """Return the environment of a benchmark; ``load`` is the mean number of busy processes in the last minute."""
    return {"machine": device(), "load": round(os.getloadavg()[0], 1), "versions": versions(), "commit": commit()}


def write(result: dict[str, Any], output: Path | None) -> None:
    """Write a result as JSON if a file is given."""
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=2) + "\n")
