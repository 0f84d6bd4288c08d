"""Result files in the format of ``evaluate``, for the tests of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BLEU_SIGNATURE = "nrefs:1|bs:1000|seed:12345|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"
CHRF_SIGNATURE = "nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:2.6.0"
MAPS = {
    "none": [0, 1],
    "universal": [0, 0, 0, 0],
    "sequence": [0, 0, 1, 1],
    "cycle": [0, 1, 0, 1],
    "cycle_rev": [0, 1, 1, 0],
}


def result(
    run: str = "vanilla",
    sharing: str = "none",
    seed: int = 1,
    bleu: float = 30.0,
    **changes: Any,
) -> dict[str, Any]:
    """Create the content of one result file."""
    layer_map = MAPS[sharing]
    score = {
        "bleu": bleu,
        "bleu_interval": [bleu - 1.5, bleu + 1.25],
        "chrf": 55.5,
        "signature": {"bleu": BLEU_SIGNATURE, "chrf": CHRF_SIGNATURE},
        "segments": 1000,
    }
    unique = len(set(layer_map))
    content = {
        "run": run,
        "dataset": "multi30k",
        "arch": "transformer_sharing_tiny",
        "sharing": {"encoder": sharing, "decoder": sharing},
        "scope": {"encoder": ["layer"], "decoder": ["layer"]},
        "layers": {"encoder": len(layer_map), "decoder": len(layer_map)},
        "unique_layers": {"encoder": unique, "decoder": unique},
        "layer_map": {"encoder": layer_map, "decoder": layer_map},
        "parameters": {"unique": 1_000_000 + 123_456 * unique, "effective": 2_000_000},
        "updates": 3840,
        "epochs": 30,
        "seed": seed,
        "tokens_per_second": 12_000.0 + 100 * seed,
        "peak_memory_bytes": 512 * 2**20,
        "train_seconds": 5400.0,
        "device": {"kind": "cpu", "name": "Some CPU", "count": 2},
        "versions": {"torch": "2.13.0", "sacrebleu": "2.6.0"},
        "commit": "0123abcd",
        "command": ["fairseq-train", "data/multi30k/bin", "--arch", "transformer_sharing_tiny"],
        "valid": {"epoch": [1, 2], "updates": [128, 256], "loss": [6.5, 5.25], "perplexity": [90.5, 38.1]},
        "checkpoint": {"averaged": ["checkpoint29.pt", "checkpoint30.pt"]},
        "generation": {"beam": 5, "lenpen": 1.0, "max_tokens": 8000, "test_lenpen": {}},
        "scores": {"test_2016_flickr": score},
    }
    return {**content, **changes}


def write(folder: Path, *results: dict[str, Any]) -> Path:
    """Write result files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for content in results:
        file = folder / f"{content['run']}-seed{content['seed']}.json"
        file.write_text(json.dumps(content), encoding="utf-8")
    return folder
