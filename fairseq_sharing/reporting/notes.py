"""The notes below the tables of a report: how to read them, warnings, signatures and machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fairseq_sharing.reporting.calibration import LEAST_RUNS, split_rates
from fairseq_sharing.reporting.conclusions import ONE_SEED, Conclusions, equal_hypotheses
from fairseq_sharing.reporting.metrics import METRICS
from fairseq_sharing.reporting.recipes import unequal_seeds
from fairseq_sharing.reporting.results import Row, signatures


def notes(rows: Sequence[Row], conclusions: Conclusions) -> list[str]:
    """Explain how to read the tables of a study.

    Args:
        rows: the experiments.
        conclusions: their comparison.
    """
    lines = [*statistical(rows, conclusions), *_missing(rows, conclusions)]
    lines += [*conclusions.warnings(), *equal_hypotheses(rows), *unequal_seeds(rows), *_unequal_machines(rows)]
    lines += [
        "M: parameter sets per stack. N: layers per stack. Stacks that differ are written as encoder+decoder."
        " Unique parameters count a shared tensor once; effective parameters count it once per layer that uses it."
        " Recipe: settings that most rows lack, apart from sharing, M and N. Tokens/s: target tokens per second in"
        " training.",
        "Sharing saves parameters, not computation: a model with N layers computes N layers, regardless of M.",
    ]
    if any(row.macs for row in rows) and not any(row.schedule for row in rows):
        lines.append(
            "MACs: multiply-accumulate operations of a forward pass over a sentence pair of 25 + 25 tokens, or over a"
            " language model's block of text."
        )
    if any(row.schedule for row in rows):
        lines.append(
            "If sharing changed during training, M and the unique parameters are those at the end. Mean unique"
            " parameters are averaged over all updates and count only trained parameters."
        )
    lines += _recipes(rows)
    for metric, found in signatures(rows).items():
        name = METRICS[metric].label if metric in METRICS else metric
        lines.append(f"sacreBLEU signature for {name}: {'; '.join(found)}")
    return [*lines, *_machines(rows), *_versions(rows)]


def statistical(rows: Sequence[Row], conclusions: Conclusions) -> list[str]:
    """Explain the comparison: the unit of replication, the family, the correction and the pooled spread."""
    plan, family = conclusions.plan, conclusions.family
    lines = list(plan.remarks)
    if all(len(row.results) == 1 for row in rows):
        return [*lines, f"{ONE_SEED}."]
    lines.append("mean ± sd: mean and standard deviation over training runs (n seeds), the unit of replication.")
    if any(len(row.results) == 1 for row in rows):
        lines.append(f"Rows with {ONE_SEED}.")
    pooled = conclusions.pooled
    if pooled:
        lines.append(f"Pooled standard deviation between runs: {pooled.deviation:.2f} ({pooled.freedom} df).")
    if family is None:
        return [
            *lines,
            "No comparison: it requires a baseline and rows with several seeds that differ in their scores.",
        ]
    direction = "Lower is better." if plan.of.lower_is_better else "Higher is better."
    declared = "the chosen pairs of rows" if plan.pairs else f"all rows against {plan.baseline}"
    test = {
        "Dunnett": "p-values and intervals: Dunnett's test with the pooled standard deviation",
        "Holm": f"p-values: {_test(plan.paired_seeds, plan.variance)}, Holm's correction; intervals: Bonferroni",
    }[family.method]
    lines.append(
        f"Comparison: {declared}, {conclusions.score_name}. {test}; all intervals hold together with 95%. They cover"
        f" training runs on these test sets. {direction} Verdicts follow the intervals; equivalent: within"
        f" ±{plan.margin:g}. g: Hedges' g. Differences per test set and at equal cost are secondary and not adjusted."
        " Equal: within 5%. MACs are recorded, or proportional to effective parameters times updates."
    )
    lines += [_split(run, tuple(runs.values())) for run, runs in conclusions.runs.items() if len(runs) >= LEAST_RUNS]
    if conclusions.segments:
        lines.append("With sentences: 95% interval of one comparison that also covers the choice of test sentences.")
    return lines


def _split(run: str, scores: tuple[float, ...]) -> str:
    rate, _ = split_rates(scores)
    return (
        f"Check on equal runs: the {len(scores)} runs of {run}, split into two groups, are told apart in {rate:.1%} of"
        " the splits (nominal 5%; the splits are not independent)."
    )


def _test(paired: bool, variance: str) -> str:
    if paired:
        return "t tests of the differences between runs with equal seeds"
    return "Welch's t tests" if variance == "separate" else "t tests with the pooled standard deviation"


def _missing(rows: Sequence[Row], conclusions: Conclusions) -> list[str]:
    """List the declared runs without a result."""
    present = {(row.run, result["seed"]) for row in rows for result in row.results}
    missing = []
    for run, seeds in conclusions.plan.seeds.items():
        absent = [str(seed) for seed in seeds if (run, seed) not in present]
        if absent:
            missing.append(f"{run} (seed{'s' * (len(absent) > 1)} {', '.join(absent)})")
    return [f"Declared runs without a result: {'; '.join(missing)}."] if missing else []


def _unequal_machines(rows: Sequence[Row]) -> list[str]:
    """Describe seeds whose rows were trained on different processors or with different numbers of threads."""
    by_seed: dict[int, dict[str, list[str]]] = {}
    for row in rows:
        for result in row.results:
            by_seed.setdefault(result["seed"], {}).setdefault(_device(result), []).append(row.run)
    different: dict[str, list[str]] = {}
    for seed, machines in sorted(by_seed.items()):
        if len(machines) > 1:
            text = "; ".join(f"{', '.join(runs)} on {name or 'an unknown machine'}" for name, runs in machines.items())
            different.setdefault(text, []).append(str(seed))
    return [
        f"Warning: rows of seed{'s' * (len(seeds) > 1)} {', '.join(seeds)} differ in processor or threads: {text}."
        for text, seeds in different.items()
    ]


def _recipes(rows: Sequence[Row]) -> list[str]:
    """Describe the averaged checkpoints and the search settings, per row if they differ."""
    by_recipe: dict[str, list[str]] = {}
    for row in rows:
        by_recipe.setdefault(_recipe(row.results[0]), []).append(row.run)
    if len(by_recipe) == 1:
        return list(by_recipe)
    return [f"{', '.join(runs)}: {recipe}" for recipe, runs in by_recipe.items()]


def _recipe(result: dict[str, Any]) -> str:
    files = result.get("checkpoint", {}).get("averaged", ())
    averaged = len(files)
    kind = "mid-epoch checkpoints" if any("_" in file for file in files) else "epoch checkpoints"
    search = result.get("generation")
    checkpoints = "the checkpoint of the last epoch" if averaged == 1 else f"the average of the last {averaged} {kind}"
    if not search:
        return f"Scored with {checkpoints}."
    lenpen = f"{search.get('lenpen', '?')}" + "".join(
        f", {value} for {test}" for test, value in (search.get("test_lenpen") or {}).items()
    )
    beam = search.get("beam", "?")
    return f"Decoded with {checkpoints}, beam {beam}, length penalty {lenpen}; scored against raw references."


def _machines(rows: Sequence[Row]) -> list[str]:
    machines: dict[str, list[str]] = {}
    for row in rows:
        machines.setdefault(machine(row), []).append(row.run)
    if len(machines) == 1:
        return [f"Trained on: {name}." for name in machines if name]
    trained = "; ".join(f"{', '.join(runs)} on {name or 'an unknown machine'}" for name, runs in machines.items())
    return [f"Trained: {trained}. Tokens/s are not comparable between machines."]


def _versions(rows: Sequence[Row]) -> list[str]:
    """List the versions of this package, or its commits, that the runs were trained with."""
    found = dict.fromkeys(
        (result.get("versions") or {}).get("fairseq-sharing") or str(result.get("commit"))[:7]
        for row in rows
        for result in row.results
        if result.get("versions") or result.get("commit")
    )
    return [f"Version of fairseq-sharing: {', '.join(found)}."] if found else []


def machine(row: Row) -> str:
    """Name the machine that a row was trained on; empty if no result records it."""
    return " and ".join(sorted({_device(result) for result in row.results} - {""}))


def _device(result: dict[str, Any]) -> str:
    device = result.get("device") or {}
    if not device:
        return ""
    unit = "GPU" if device.get("kind") == "cuda" else "CPU core"
    count = device.get("count", 1)
    name = f"{device.get('name', device.get('kind', '?'))}, {count} {unit}{'s' * (count != 1)}"
    threads = device.get("threads")
    return name if threads is None else f"{name}, {threads} thread{'s' * (threads != 1)}"
