"""Compare trained language models: test perplexity, size, MACs and speed in a table, and learning curves.

Run: python -m benchmarks.moe.language_model runs/news_commentary_lm/{dense,moeut}-seed1 --output results/moeut

Each argument is a run of ``fairseq-sharing train`` or a JSON file that this program wrote. The last checkpoint of a run
is scored by ``fairseq-eval-lm`` on every test set, in sequences of the training length. A run that ended before its
last update has no scores, only the values of its log. The program writes one JSON file per run, language_model.md,
learning curves, and the expert usage per layer of models with expert banks.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

from fairseq_sharing import flags
from fairseq_sharing.description.counts import measure
from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.training_log import summarize
from fairseq_sharing.experiment.run_directory import RunDirectory
from fairseq_sharing.reporting.expert_figure import expert_use
from fairseq_sharing.reporting.learning_curves import Run, draw_curves
from fairseq_sharing.reporting.plot_style import plain_styles, save_figure
from fairseq_sharing.resources import PACKAGE_DIR


def evaluate(path: Path, cpu: bool) -> dict:
    """Score a run and collect the values of its log and checkpoint."""
    run = RunDirectory(path)
    config, record, log = run.config(), run.record(), summarize(run.log_records())
    checkpoint = run.checkpoints / "checkpoint_last.pt"
    length = int(config.train.tokens_per_sample)
    manifest = json.loads((Path(record["data"]) / "manifest.json").read_text(encoding="utf-8"))
    words = [f"{record['data']}/bin", "--user-dir", PACKAGE_DIR, "--path", checkpoint]
    words += ["--task", "language_modeling", "--tokens-per-sample", length]
    words += ["--sample-break-mode", config.train.sample_break_mode, "--max-tokens", 32 * length]
    command = [sys.executable, "-P", "-m", "fairseq_cli.eval_lm", *map(str, words), *(["--cpu"] if cpu else [])]
    done = record["finished"] is not None
    tests = {test["name"]: _score([*command, "--gen-subset", test["subset"]]) for test in manifest["tests"] if done}
    vocabulary = len((Path(record["data"]) / "bin/dict.txt").read_text(encoding="utf-8").splitlines()) + 4
    description = measure(str(config.run), flags.parse(config.train), vocabulary, length)
    unique = sum(description.unique.values())
    return {
        "run": str(config.run),
        "seed": int(config.seed),
        "dataset": str(config.dataset),
        "arch": str(config.train.arch),
        "layer_map": description.layer_map,
        "parameters": {
            "unique": unique,
            "effective": sum(description.effective.values()),
            "active": description.active or unique,
        },
        "macs_per_token": description.macs // length,
        "updates": log.valid["updates"][-1],
        "training_sentences": manifest["train"]["lines"],
        "tests": tests,
        "valid": log.valid,
        "experts": log.experts,
        "tokens_per_second": log.tokens_per_second,
        **{name: record.get(name) for name in ("train_seconds", "peak_memory_bytes", "device", "versions", "commit")},
    }


def _score(command: list[str]) -> dict[str, float]:
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.findall(r"Loss \(base 2\): ([\d.]+), Perplexity: ([\d.]+)", done.stdout + done.stderr)
    if not found:
        raise SharingError(f"{' '.join(command)}: gave no perplexity: {done.stderr.strip()[-300:]}")
    return {"loss_base_2": float(found[-1][0]), "perplexity": float(found[-1][1])}


def table(results: list[dict]) -> str:
    """Write the Markdown table."""
    tests = list(dict.fromkeys(name for result in results for name in result["tests"]))
    lines = [
        "| model | layers, sets | parameters | active per token | MACs per token | updates | tokens/s | valid | "
        + " | ".join(tests)
        + " |",
        "|---|---|" + "---:|" * (6 + len(tests)),
    ]
    for result in results:
        layer_map = result["layer_map"]["decoder"]
        valid = min(value for value in result["valid"]["perplexity"] if value is not None)
        speed = result["tokens_per_second"]
        lines.append(
            f"| {result['run']}, seed {result['seed']} | {len(layer_map)}, {len(set(layer_map))} "
            f"| {result['parameters']['unique']:,} | {result['parameters']['active']:,} "
            f"| {result['macs_per_token']:,} | {result['updates']:,} | {f'{speed:,.0f}' if speed else '-'} "
            f"| {valid:.2f} | "
            + " | ".join(f"{result['tests'][name]['perplexity']:.2f}" if result["tests"] else "-" for name in tests)
            + " |"
        )
    return "\n".join(lines) + "\n"


def draw(results: list[dict], folder: Path) -> None:
    """Draw learning curves, and how often each layer chose each expert."""
    styles = plain_styles(len(results))
    runs = [
        Run(f"{result['run']}, seed {result['seed']}", style, [result["valid"]])
        for result, style in zip(results, styles, strict=True)
    ]
    figures = {"language_model_curves": draw_curves(runs)}
    for result in results:
        name = f"lm-{result['run']}-seed{result['seed']}-expert-use"
        figures[name] = expert_use(result["experts"], result["layer_map"])
    for name, figure in figures.items():
        if figure is not None:
            save_figure(figure, folder, name)


def main() -> None:
    """Score the runs and write the table and figures."""
    logging.getLogger().setLevel(logging.WARNING)  # importing fairseq enables all log messages
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", nargs="+", type=Path, help="run directories of fairseq-sharing train, or JSON files of this program"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--cpu", action="store_true", help="score on the CPU")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    results = []
    for path in args.runs:
        result = evaluate(path, args.cpu) if path.is_dir() else json.loads(path.read_text(encoding="utf-8"))
        results.append(result)
        name = f"lm-{result['run']}-seed{result['seed']}"
        (args.output / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    told = table(results)
    (args.output / "language_model.md").write_text(told, encoding="utf-8")
    draw(results, args.output)
    print(told)


if __name__ == "__main__":
    main()
