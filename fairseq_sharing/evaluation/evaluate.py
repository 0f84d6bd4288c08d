"""Evaluate a run: average, translate, score, compare, and write ``result.json``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fairseq_sharing.checkpoints.finite_weights import refuse_nonfinite_weights
from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.averages import average_last_epochs, average_name
from fairseq_sharing.evaluation.baseline import find_baseline, fingerprint, read_baseline
from fairseq_sharing.evaluation.bleu_tokenizer import check_tokenizer
from fairseq_sharing.evaluation.compound_split import compound_split_bleu
from fairseq_sharing.evaluation.generation import read_generated
from fairseq_sharing.evaluation.hypotheses import RunTranslator
from fairseq_sharing.evaluation.scoring import read_parallel, score
from fairseq_sharing.evaluation.settings import EvaluationSettings
from fairseq_sharing.evaluation.steps import Steps
from fairseq_sharing.evaluation.tokenized_bleu import tokenized_bleu
from fairseq_sharing.evaluation.training_log import summarize
from fairseq_sharing.experiment.command_line import refuse_separator
from fairseq_sharing.experiment.dictionaries import refuse_other_dictionaries
from fairseq_sharing.experiment.direction import direction_of, refuse_other_direction
from fairseq_sharing.experiment.run_directory import RunDirectory
from fairseq_sharing.files import read_lines, write_text
from fairseq_sharing.finite import find_nonfinite, is_number
from fairseq_sharing.preparation.manifest import MANIFEST, read_manifest
from fairseq_sharing.preparation.text import Pipeline
from fairseq_sharing.reporting.results import add_result

EXAMPLES = 5  # number of sentences quoted from an artificial corpus
_SEARCH = ("beam", "lenpen", "max_tokens", "test_lenpen", "max_len_a", "max_len_b")
_MODEL = ("arch", "sharing", "scope", "layers", "unique_layers", "layer_map", "parameters", "updates")
_RECORD = ("train_seconds", "device", "versions", "commit")


def evaluate_run(
    path: Path,
    console: Console,
    baseline: Path | None = None,
    data: Path | None = None,
    out: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Average a run's last checkpoints, translate and score every test set of its data.

    Averaging and translation are skipped if checkpoints, settings and data have not changed since the last evaluation.

    Args:
        path: run directory of ``fairseq-sharing train``.
        console: prints commands and progress.
        baseline: run directory to compare with; by default that of the configuration.
        data: data directory, if it has moved since training.
        out: directory for a copy of the result, ``<run>-seed<seed>.json``.
        overrides: values that replace those of the configuration's ``evaluate`` block.

    Returns:
        The result, as written to ``result.json``.

    Raises:
        SharingError: an input is missing, incomplete or inconsistent, or another process is evaluating the run; the
            message names the cause.
    """
    run = RunDirectory(path)
    own = run.config().get("evaluate", {})
    settings = EvaluationSettings.of({**own, **(overrides or {})})
    average = average_name(settings.average_last, EvaluationSettings.of(own).average_last)
    with run.evaluating():
        return _evaluate(run, console, settings, average, baseline, data, out)


def _evaluate(
    run: RunDirectory,
    console: Console,
    settings: EvaluationSettings,
    average: str,
    baseline: Path | None,
    data: Path | None,
    out: Path | None,
) -> dict[str, Any]:
    config, record, path = run.config(), run.record(), run.path
    data = data or Path(record.get("data", ""))
    refuse_separator(path, "run directory")
    refuse_separator(data, "data directory")
    manifest = _read_manifest(data, settings)
    refuse_other_direction(run.direction(), direction_of(manifest, data / "manifest.json"), path, data)
    refuse_other_dictionaries(record.get("dictionaries"), data, path)
    check_tokenizer(manifest["target_lang"], settings.tokenize)
    if record.get("finished") is None:
        console.print(
            f"{path}: training has not finished; evaluating its current checkpoints", markup=False, soft_wrap=True
        )
    other = find_baseline(run, config, settings.baseline, baseline, console)

    steps = Steps(run.steps_file)
    averaged, names, inputs = average_last_epochs(run, settings.average_last, steps, console, average)
    log, history = summarize(run.log_records()), _read_history(averaged)
    _refuse_nonfinite(path, {**vars(log), **history})
    translator = RunTranslator(run, data, manifest, settings, config.train)
    lowercase = bool(manifest.get("tokenizer", {}).get("lowercase"))
    scores: dict[str, dict[str, Any]] = {}
    examples: list[dict[str, str]] = []
    for test in manifest["tests"]:
        name, reference = test["name"], data / test["reference"]
        references = read_parallel(reference, int(test["segments"]), f"{data / 'manifest.json'} records")
        hypotheses = translator.translate(test, averaged, inputs, steps, console)
        write_text(run.evaluation / f"{name}.hypothesis", "".join(line + "\n" for line in hypotheses))
        compared = read_baseline(other, name, reference, len(references))
        scores[name] = {
            **score(
                hypotheses,
                references,
                (compared.name, compared.hypotheses) if compared else None,
                manifest["target_lang"],
                settings.tokenize,
                lowercase,
            ).as_dict(),
            "hypothesis_sha256": fingerprint(hypotheses),
            "baseline_sha256": fingerprint(compared.hypotheses) if compared else None,
        }
        if settings.compound_split:
            bleu = compound_split_bleu(hypotheses, references, manifest["target_lang"])
            scores[name]["compound_split_bleu"] = round(bleu, 4)
        if lowercase:
            generated = read_generated(run.evaluation / f"{name}.generate.txt", len(references))
            scores[name]["tokenized_bleu"] = round(
                tokenized_bleu(generated, references, Pipeline.from_manifest(data)), 4
            )
        if manifest.get("artificial") and not examples:
            sources = list(read_lines(data / test["source"]))
            examples = _examples(name, sources, references, hypotheses)

    from fairseq_sharing.checkpoints.summary import describe_checkpoint  # imports torch: after the input checks

    model = describe_checkpoint(averaged)
    result = {
        "run": str(config.run),
        "dataset": str(config.dataset),
        **{name: model[name] for name in _MODEL},
        "epochs": _epoch(names[-1], averaged),
        "seed": int(config.seed),
        "tokens_per_second": log.tokens_per_second,
        "peak_memory_bytes": record.get("peak_memory_bytes") or None,
        **{name: record.get(name) for name in _RECORD},
        **({"earlier_devices": record["earlier_devices"]} if record.get("earlier_devices") else {}),
        "command": _portable(record.get("command") or [], config),
        **history,
        "valid": log.valid,
        **({"experts": log.experts} if log.experts else {}),
        "checkpoint": {"averaged": names},
        "generation": {name: getattr(settings, name) for name in _SEARCH},
        "scores": scores,
        **({"examples": examples} if examples else {}),
    }
    _refuse_nonfinite(path, result)
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False, default=dict) + "\n"
    write_text(run.result_file, text)
    if out is not None:
        add_result(text, out)
    return json.loads(text)


def _refuse_nonfinite(run: Path, result: Mapping[str, Any]) -> None:
    """Reject numbers that JSON cannot represent; the message names the field."""
    nonfinite = find_nonfinite(result)
    if nonfinite is not None:
        raise SharingError(f"{run}: the result would contain {nonfinite}; allowed: finite numbers")


def _read_history(averaged: Path) -> dict[str, Any]:
    """Check the weights of the averaged checkpoint and read its layer map changes.

    Raises:
        SharingError: a weight is NaN or infinite.
    """
    from fairseq_sharing.checkpoints.files import load_checkpoint

    checkpoint = load_checkpoint(averaged)
    refuse_nonfinite_weights(checkpoint["model"], averaged)
    return _map_history(checkpoint)


def _map_history(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Summarize how the layer maps of a run changed during training.

    Returns:
        schedule; mean_parameters (unique trainable parameters, averaged over all updates); map_history (start and
        changes). Empty for a run without a schedule.
    """
    from fairseq_sharing.schedules.replay import recorded_state

    state = recorded_state(checkpoint)
    if not state:
        return {}
    changes = state["changes"]
    return {
        "schedule": state["options"]["sharing_schedule"],
        "mean_parameters": round(state["parameter_updates"] / state["updates"]),
        "map_history": {
            "start": changes[0]["before"] if changes else None,
            "changes": [_change(change) for change in changes],
        },
    }


def _change(change: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the state that the previous change contains, and replace overflowed gradient norms by null."""
    norms = {time: norm if is_number(norm) else None for time, norm in change["gradient_norm"].items()}
    return {**{name: value for name, value in change.items() if name != "before"}, "gradient_norm": norms}


def _epoch(name: str, averaged: Path) -> int:
    """Return the epoch N of ``checkpointN.pt`` or ``checkpoint_N_UPDATES.pt``; of other names, that of the average."""
    from fairseq_sharing.checkpoints.files import load_checkpoint

    if found := re.fullmatch(r"checkpoint_?(\d+)(_\d+)?\.pt", name):
        return int(found[1])
    place = load_checkpoint(averaged)["extra_state"]["train_iterator"]
    return place["epoch"] - (place["iterations_in_epoch"] == 0)  # fairseq counts a finished epoch as the next one


def _examples(
    test: str, sources: Sequence[str], references: Sequence[str], hypotheses: Sequence[str]
) -> list[dict[str, str]]:
    """Quote sentences spread evenly over a test set."""
    chosen = range(0, len(references), max(1, len(references) // EXAMPLES))[:EXAMPLES]
    return [
        {"test": test, "source": sources[i], "reference": references[i], "hypothesis": hypotheses[i]} for i in chosen
    ]


def _read_manifest(data: Path, settings: EvaluationSettings) -> dict[str, Any]:
    """Read a data directory's manifest and check that it has the test sets named in the settings."""
    manifest = read_manifest(data, ("source_lang", "target_lang", "tests", "files"))
    if not manifest:
        raise SharingError(f"{data / MANIFEST}: no such file; give the prepared data directory with --data")
    if not manifest["target_lang"]:
        raise SharingError(f"{data}: contains texts of one language; allowed: data for translation")
    names = [test["name"] for test in manifest["tests"]]
    for name in settings.test_lenpen:
        if name not in names:
            raise SharingError(f"evaluate.test_lenpen: no test set {name!r}; allowed: {', '.join(names)}")
    return manifest


def _portable(command: Sequence[str], config: Any) -> list[str]:
    """Replace the directories in a training command by their defaults in a clone."""
    run = f"runs/{config.dataset}/{config.run}-seed{config.seed}"
    places = {
        "fairseq-train": f"data/{config.dataset}/bin",
        "--user-dir": "fairseq_sharing",
        "--save-dir": f"{run}/checkpoints",
        "--tensorboard-logdir": f"{run}/tensorboard",
    }
    return [places.get(before, word) for before, word in zip(["", *command], command, strict=False)]
