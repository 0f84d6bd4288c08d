"""Evaluate a run: average, translate and score, or compute perplexity, and write ``result.json``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fairseq_sharing.checkpoints.finite_weights import refuse_nonfinite_weights
from fairseq_sharing.depths.settings import AUTO, DepthRequest, setting_name
from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.at_depth import reduce_to_depth
from fairseq_sharing.evaluation.averages import average_last_epochs, average_name
from fairseq_sharing.evaluation.bleu_tokenizer import check_tokenizer
from fairseq_sharing.evaluation.checkpoint_directory import PlainData, open_checkpoints
from fairseq_sharing.evaluation.compound_split import compound_split_bleu
from fairseq_sharing.evaluation.file_scores import read_parallel
from fairseq_sharing.evaluation.generation import read_generated
from fairseq_sharing.evaluation.hypotheses import RunTranslator, TranslateWithCTranslate2
from fairseq_sharing.evaluation.perplexity import TASK, LanguageModelScorer
from fairseq_sharing.evaluation.scoring import score
from fairseq_sharing.evaluation.settings import CTRANSLATE2, EvaluationSettings
from fairseq_sharing.evaluation.steps import Steps
from fairseq_sharing.evaluation.test_data import EvaluationData, Subset, prepared_data
from fairseq_sharing.evaluation.tokenized_bleu import tokenized_bleu
from fairseq_sharing.evaluation.training_log import summarize
from fairseq_sharing.experiment.command_line import refuse_separator
from fairseq_sharing.experiment.dictionaries import refuse_other_dictionaries
from fairseq_sharing.experiment.direction import refuse_other_direction
from fairseq_sharing.experiment.run_directory import RunDirectory
from fairseq_sharing.files import read_lines, write_text
from fairseq_sharing.finite import find_nonfinite, is_number
from fairseq_sharing.reporting.kept_hypotheses import keep
from fairseq_sharing.reporting.results import add_result

EXAMPLES = 5  # number of sentences quoted from an artificial corpus
_SEARCH = ("engine", "beam", "lenpen", "max_tokens", "test_lenpen", "max_len_a", "max_len_b")
_TRANSLATION = (*(name for name in _SEARCH if name != "max_tokens"), "compound_split", "tokenize")
_BLOCKS = ("tokens_per_sample", "context_window")
_MODEL = ("arch", "sharing", "scope", "layers", "unique_layers", "layer_map", "parameters", "updates")
_RECORD = ("train_seconds", "device", "versions", "commit")

CountMacs = Callable[[Path, Path], int | None]
"""Counts the MACs of the model in a checkpoint, given the dictionary of the target language."""


def evaluate_run(
    path: Path,
    console: Console,
    data: Path | None = None,
    out: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    depth: DepthRequest | None = None,
    count_macs: CountMacs | None = None,
    ctranslate2: TranslateWithCTranslate2 | None = None,
) -> dict[str, Any]:
    """Average a run's last checkpoints and score every test set of its data.

    Averaging and translation are skipped if checkpoints, settings and data have not changed since the last evaluation.

    Args:
        path: run directory of ``fairseq-sharing train``.
        console: prints commands and progress.
        data: data directory, if it has moved since training.
        out: directory for a copy of the result, ``<run>-seed<seed>.json``, and of its hypotheses.
        overrides: values that replace those of the configuration's ``evaluate`` block.
        depth: the depth to evaluate, or a depth per sentence. Its result is that of a run named ``<run>-d<depth>`` or
            ``<run>-auto``; None for all layers.
        count_macs: counts the MACs in the result; None to leave them out.
        ctranslate2: translates if the settings ask for CTranslate2.

    Returns:
        The result, as written to ``result.json``, ``result-d<depth>.json`` or ``result-auto.json``.

    Raises:
        SharingError: an input is missing, incomplete or inconsistent, or another process is evaluating the run; the
            message names the cause.
    """
    run = RunDirectory(path)
    settings = EvaluationSettings.of_run(run.config(), overrides)
    average = average_name(settings.average_last, EvaluationSettings.of_run(run.config()).average_last)
    record = run.record()
    data = data or Path(record.get("data", ""))
    with run.evaluating():
        found = prepared_data(data)
        trained = run.direction()
        refuse_other_direction(trained, found.direction if trained else None, path, data)
        refuse_other_dictionaries(record.get("dictionaries"), data, path)
        if record.get("finished") is None:
            console.print(
                f"{path}: training has not finished; evaluating its current checkpoints", markup=False, soft_wrap=True
            )
        return _evaluate(run, console, settings, average, found, out, depth, count_macs, ctranslate2)


def evaluate_checkpoints(
    path: Path,
    console: Console,
    data: Path | PlainData,
    name: str | None = None,
    out: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    depth: DepthRequest | None = None,
    count_macs: CountMacs | None = None,
    ctranslate2: TranslateWithCTranslate2 | None = None,
) -> dict[str, Any]:
    """Evaluate a translation model of plain ``fairseq-train`` like a run.

    Args:
        path: its ``--save-dir``, which the averaged checkpoint, the hypotheses and ``result.json`` are written to.
        console: prints commands and progress.
        data: a prepared data directory, or the data of a plain fairseq setup.
        name: name of the run in the result; by default that of the directory.
        out: see `evaluate_run`.
        overrides: settings that differ from the defaults of `EvaluationSettings`.
        depth: see `evaluate_run`.
        count_macs: see `evaluate_run`.
        ctranslate2: see `evaluate_run`.

    Returns:
        The result.

    Raises:
        SharingError: see `evaluate_run`.
    """
    run, found = open_checkpoints(path, data, name)
    settings = EvaluationSettings.of(overrides or {})
    refuse_other_direction(run.direction(), found.direction, path, found.binarized)
    average = average_name(settings.average_last, EvaluationSettings.average_last)
    with run.evaluating():
        return _evaluate(run, console, settings, average, found, out, depth, count_macs, ctranslate2)


def _evaluate(
    run: RunDirectory,
    console: Console,
    settings: EvaluationSettings,
    average: str,
    data: EvaluationData,
    out: Path | None,
    depth: DepthRequest | None,
    count_macs: CountMacs | None,
    ctranslate2: TranslateWithCTranslate2 | None,
) -> dict[str, Any]:
    config, record, path = run.config(), run.record(), run.path
    task = str(config.get("train", {}).get("task") or "translation")
    translates = bool(data.direction[1])
    refuse_separator(path, "run directory")
    refuse_separator(data.binarized, "data directory")
    _check(data, settings, task, path)
    per_sentence = depth is not None and depth.per_sentence
    if per_sentence and not translates:
        raise SharingError(
            f"--depth {AUTO}: {path} is a language model; allowed: translation models, or a number of layers"
        )
    if per_sentence and settings.engine == CTRANSLATE2:
        raise SharingError(f"--depth {AUTO}: not with evaluate.engine {CTRANSLATE2}; allowed: a number of layers")

    steps = Steps(run.steps_file)
    averaged, names, inputs = average_last_epochs(run, settings.average_last, steps, console, average)
    setting: dict[str, int] | None = None
    if depth is not None and depth.given and not per_sentence:
        averaged, setting, inputs = reduce_to_depth(averaged, inputs, depth, steps)
    suffix = f"-{AUTO}" if per_sentence else f"-{setting_name(setting)}" if setting else ""
    log, history = summarize(run.log_records()), _read_history(averaged)
    _refuse_nonfinite(path, {**vars(log), **history})
    system = f"{config.run}{suffix}-seed{config.seed}"
    scores: dict[str, dict[str, Any]] = {}
    examples: list[dict[str, str]] = []
    classifier: Mapping[str, Any] = {}
    if translates:
        arguments = run, data, settings, config.get("train", {}), averaged, inputs
        if per_sentence:
            from fairseq_sharing.evaluation.sentence_depth import SentenceDepthTranslator  # imports torch

            translator: RunTranslator = SentenceDepthTranslator(*arguments)
        else:
            translator = RunTranslator(*arguments, suffix, ctranslate2)
        classifier = translator.depth_classifier
        for test in data.tests:
            hypotheses = translator.translate(test, steps, console)
            scores[test.name] = _score(test, hypotheses, data, settings)
            scores[test.name] |= keep(hypotheses, path, test.name, data.direction, system) | translator.record(test)
            if data.lowercase:
                generated = read_generated(run.evaluation / f"{test.name}{suffix}.generate.txt", test.segments)
                scores[test.name]["tokenized_bleu"] = _tokenized_bleu(test, generated, data)
            if data.artificial and not examples:
                examples = _examples(test, hypotheses)
    else:
        scorer = LanguageModelScorer(averaged, data, settings, inputs, suffix)
        for test in data.tests:
            scores[test.name] = scorer.score(test, run.evaluation, steps, console)

    from fairseq_sharing.checkpoints.summary import describe_checkpoint  # imports torch: after the input checks

    model = describe_checkpoint(averaged)
    # The MACs of a depth per sentence are those of its scores.
    dictionary = data.binarized / (f"dict.{data.direction[1]}.txt" if translates else "dict.txt")
    macs = count_macs(averaged, dictionary) if count_macs and not per_sentence else None
    result = {
        "run": f"{config.run}{suffix}",
        "dataset": str(config.dataset),
        **{name: model[name] for name in _MODEL},
        **({"macs": macs} if macs else {}),
        **({"depth": setting} if setting else {}),
        **({"depth_classifier": classifier} if classifier else {}),
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
        "generation": _generation(settings, translates),
        "scores": scores,
        **({"examples": examples} if examples else {}),
    }
    _refuse_nonfinite(path, result)
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False, default=dict) + "\n"
    result_file = run.result_with(suffix)
    write_text(result_file, text)
    if out is not None:
        add_result(result_file, out)
    return json.loads(text)


def _generation(settings: EvaluationSettings, translates: bool) -> dict[str, Any]:
    generation = {name: getattr(settings, name) for name in (_SEARCH if translates else _BLOCKS)}
    if translates and settings.engine != CTRANSLATE2:  # not in results of earlier versions
        del generation["engine"]
    return generation


def _check(data: EvaluationData, settings: EvaluationSettings, task: str, run: Path) -> None:
    """Check before the work that the settings fit the data and that the texts can be scored."""
    names = [test.name for test in data.tests]
    if settings.engine == CTRANSLATE2 and any(test.source is None for test in data.tests):
        raise SharingError(
            f"evaluate.engine: {CTRANSLATE2}; allowed only with data of fairseq-sharing prepare, whose sources it reads"
        )
    for name in settings.test_lenpen:
        if name not in names:
            raise SharingError(f"evaluate.test_lenpen: no test set {name!r}; allowed: {', '.join(names)}")
    target = data.direction[1]
    if target:
        check_tokenizer(target, settings.tokenize)
    elif task != TASK:
        raise SharingError(f"{run}: was trained for the task {task}; allowed: translation and {TASK}")
    models, foreign = ("language models", _BLOCKS) if target else ("translation models", _TRANSLATION)
    for name in foreign:
        if getattr(settings, name) != getattr(EvaluationSettings(), name):
            raise SharingError(f"evaluate.{name}: {getattr(settings, name)}; allowed only for {models}")


def _score(
    test: Subset, hypotheses: Sequence[str], data: EvaluationData, settings: EvaluationSettings
) -> dict[str, Any]:
    assert test.reference is not None
    references = read_parallel(test.reference, test.segments, test.recorded)
    target = data.direction[1]
    scores = score(hypotheses, references, target, settings.tokenize, data.lowercase)
    if settings.compound_split:
        scores["compound_split_bleu"] = round(compound_split_bleu(hypotheses, references, target), 4)
    return scores


def _tokenized_bleu(test: Subset, generated: Sequence[str], data: EvaluationData) -> float:
    assert test.reference is not None
    references = read_parallel(test.reference, test.segments, test.recorded)
    return round(tokenized_bleu(generated, references, data.pipeline), 4)


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


def _examples(test: Subset, hypotheses: Sequence[str]) -> list[dict[str, str]]:
    """Quote sentences spread evenly over a test set."""
    assert test.source is not None
    assert test.reference is not None
    sources, references = list(read_lines(test.source)), list(read_lines(test.reference))
    chosen = range(0, len(references), max(1, len(references) // EXAMPLES))[:EXAMPLES]
    return [
        {"test": test.name, "source": sources[i], "reference": references[i], "hypothesis": hypotheses[i]}
        for i in chosen
    ]


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
