"""Measure the peak memory of building a model: M = 6 and N = 48 against vanilla models with 6 and 48 layers.

Run: python -m benchmarks.memory.build [--output results/memory/build.json]
Each model is built in a new process. The peak is the growth of the resident memory after the imports.
The sizes are those of the paper's base model: d_model 512, d_ffn 2048, 32,768 shared embeddings.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

MODELS: dict[str, dict[str, Any]] = {
    "vanilla N=6": {"layers": 6, "sharing": "none", "unique_layers": None},
    "cycle M=6 N=48": {"layers": 48, "sharing": "cycle", "unique_layers": 6},
    "vanilla N=48": {"layers": 48, "sharing": "none", "unique_layers": None},
}
VOCABULARY = 32_768


def build(layers: int, sharing: str, unique_layers: int | None) -> dict[str, int]:
    """Build one model in this process; return the growth of the peak and the size of the parameters, in bytes."""
    import resource

    import torch
    from fairseq.data import Dictionary

    import fairseq_sharing

    fairseq_sharing.register()
    from fairseq_sharing.models.transformer_sharing import TransformerSharingModel

    dictionary = Dictionary()
    for number in range(VOCABULARY - len(dictionary)):
        dictionary.add_symbol(str(number))
    task = argparse.Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    options = argparse.Namespace(
        encoder_layers=layers,
        decoder_layers=layers,
        sharing=sharing,
        unique_layers=unique_layers,
        share_all_embeddings=True,
    )
    # Warm-up: the first use of torch's generators and kernels allocates memory.
    torch.nn.init.xavier_uniform_(torch.empty(512, 512))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = TransformerSharingModel.build_model(options, task)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"peak_bytes": peak * 1024, "parameter_bytes": sum(p.numel() * p.element_size() for p in model.parameters())}


def main() -> None:
    """Measure all models several times alternately and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each (default: 5)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--build", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.build:
        print(json.dumps(build(**MODELS[args.build])))
        return

    measured: dict[str, list[dict[str, int]]] = {name: [] for name in MODELS}
    for _ in range(args.runs):
        for name, runs in measured.items():
            command = [sys.executable, "-m", __spec__.name, "--build", name]
            told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            runs.append(json.loads(told.splitlines()[-1]))
    import torch

    result = {
        "machine": {"processor": platform.machine(), "system": platform.system(), "device": "cpu"},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "runs": args.runs,
        "models": {
            name: {
                "peak_bytes": int(statistics.median(run["peak_bytes"] for run in runs)),
                "parameter_bytes": runs[0]["parameter_bytes"],
            }
            for name, runs in measured.items()
        },
    }
    print(f"{'model':16} {'peak MiB':>9} {'parameters MiB':>15}")
    for name, row in result["models"].items():
        print(f"{name:16} {row['peak_bytes'] / 2**20:9.0f} {row['parameter_bytes'] / 2**20:15.0f}")
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
