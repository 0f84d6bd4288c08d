"""Evaluate a run: average, translate, score, compare, and write ``result.json``."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rich.console import Console

from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.generation import generate, read_generated
from fairseq_sharing.evaluation.scoring import read_parallel, score
from fairseq_sharing.evaluation.training_log import summarise
from fairseq_sharing.preparation.files import atomic_write, read_lines, sha256
from fairseq_sharing.training.run_directory import RunDirectory

EXAMPLES = 5  # sentences quoted from an artificial corpus
_SEARCH_SETTINGS = ("beam", "lenpen", "max_tokens", "test_lenpen")
_EPOCH_CHECKPOINT = re.compile(r"checkpoint(\d+)\.pt")


@dataclass(frozen=True)
class EvaluationSettings:
    """How a run is evaluated: the ``evaluate`` block of its configuration.

    Attributes:
        average_last: number of epoch checkpoints averaged, the newest.
        beam: beam size.
        lenpen: length penalty; above 1 favours longer translations.
        max_tokens: source tokens a batch, padding included.
        baseline: run name of the baseline, looked up beside the run at the same seed.
        test_lenpen: length penalty by test set, where it differs.
    """

    average_last: int = 10
    beam: int = 5
    lenpen: float = 1.0
    max_tokens: int = 8000
    baseline: str | None = None
    test_lenpen: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, block: Mapping[Any, Any]) -> EvaluationSettings:
        """Read the block.

        Raises:
            SharingError: an unknown key, or a value that is not allowed.
        """
        known = [item.name for item in fields(cls)]
        for key in block:
            if key not in known:
                raise SharingError(f"evaluate: unknown key {key!r}; allowed: {', '.join(known)}")
        return cls(**block)

    def __post_init__(self) -> None:
        for name in ("average_last", "beam", "max_tokens"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SharingError(f"evaluate.{name} must be a whole number from 1, got {value!r}")
        for name, value in {"lenpen": self.lenpen, **self.test_lenpen}.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise SharingError(f"evaluate: length penalty {name} must be a number, got {value!r}")


def evaluate_run(
    path: Path,
    console: Console,
    baseline: Path | None = None,
    data: Path | None = None,
    out: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Average a run's last checkpoints, translate and score every test set of its data.

    A step whose checkpoints, settings and data are those of its last time is not done again.

    Args:
        path: run directory of ``fairseq-sharing train``.
        console: where commands and progress are shown.
        baseline: run directory to compare with; by default the configuration's.
        data: data directory, where it has moved since training.
        out: directory that gets a copy of the result, ``<run>-seed<seed>.json``.
        overrides: values that replace those of the configuration's ``evaluate`` block.

    Returns:
        The result, as written to ``result.json``.

    Raises:
        SharingError: something is missing, incomplete or does not fit together; the message names it.
    """
    from fairseq_sharing import checkpoint
    from fairseq_sharing.preparation.text import Pipeline

    run = RunDirectory(path)
    config, record = run.config(), run.record()
    settings = EvaluationSettings.of({**config.get("evaluate", {}), **(overrides or {})})
    data = data or Path(record.get("data", ""))
    manifest = _read_manifest(data)
    tests = manifest["tests"]
    _check_names(settings.test_lenpen, [test["name"] for test in tests])

    steps = _Steps(run.evaluation / "steps.json")
    checkpoints = last_epoch_checkpoints(run.checkpoints, settings.average_last)
    if len(checkpoints) < settings.average_last:
        console.print(
            f"averaging {len(checkpoints)} checkpoints: {run.checkpoints} holds fewer than the"
            f" {settings.average_last} asked for",
            markup=False,
        )
    if record.get("finished") is None:
        console.print(f"{run.path}: training has not finished; scoring what is there", markup=False)
    averaged = run.checkpoints / "checkpoint_average.pt"
    inputs: dict[str, Any] = {"checkpoints": {file.name: sha256(file) for file in checkpoints}}
    if not steps.is_done("average", inputs, averaged):
        checkpoint.average_checkpoints(checkpoints, averaged)
        steps.record("average", inputs, averaged)

    pipeline = Pipeline.from_manifest(data)
    compared = _find_baseline(run, config, settings, baseline, console)
    scores: dict[str, dict[str, Any]] = {}
    examples: list[dict[str, str]] = []
    for test in tests:
        name, segments = test["name"], int(test["segments"])
        references = list(read_lines(data / test["reference"]))
        if len(references) != segments:
            raise SharingError(
                f"{data / test['reference']} has {len(references)} lines, the manifest says {segments}"
            )
        lenpen = settings.test_lenpen.get(name, settings.lenpen)
        translated = run.evaluation / f"{name}.generate.txt"
        search = {"beam": settings.beam, "lenpen": lenpen, "max_tokens": settings.max_tokens}
        step_inputs = {**inputs, **search, "subset": test["subset"], "data": manifest["files"]}
        if steps.is_done(name, step_inputs, translated):
            tokens = read_generated(translated, segments)
        else:
            words = [str(data / "bin"), "--path", str(averaged), "--gen-subset", test["subset"]]
            words += ["--task", str(config.train.get("task") or "translation")]
            words += ["--source-lang", manifest["source_lang"], "--target-lang", manifest["target_lang"]]
            for option, value in search.items():
                words += [f"--{option.replace('_', '-')}", str(value)]
            tokens = generate(words, translated, segments, name, console)
            steps.record(name, step_inputs, translated)
        hypotheses = [pipeline.decode(line) for line in tokens]
        _write(run.evaluation / f"{name}.hypothesis", "".join(line + "\n" for line in hypotheses))
        other = _read_baseline(compared, name, data / test["reference"], segments)
        scores[name] = score(hypotheses, references, other, manifest["target_lang"]).as_dict()
        if manifest.get("artificial") and not examples:
            sources = list(read_lines(data / test["source"]))
            examples = [
                {
                    "test": name,
                    "source": sources[i],
                    "reference": references[i],
                    "hypothesis": hypotheses[i],
                }
                for i in range(0, segments, max(1, segments // EXAMPLES))
            ][:EXAMPLES]

    model = checkpoint.describe_checkpoint(averaged)
    log = summarise(run.log_records())
    result = {
        "run": str(config.run),
        "dataset": str(config.dataset),
        **{
            name: model[name]
            for name in ("arch", "sharing", "scope", "layers", "unique_layers", "layer_map", "parameters")
        },
        "updates": model["updates"],
        "epochs": _epoch(checkpoints[-1]),
        "seed": int(config.seed),
        "tokens_per_second": log.tokens_per_second,
        "peak_memory_bytes": record.get("peak_memory_bytes") or None,
        "train_seconds": record.get("train_seconds"),
        "device": record.get("device"),
        "versions": record.get("versions"),
        "commit": record.get("commit"),
        "command": _portable(record.get("command") or [], config),
        "valid": log.valid,
        "checkpoint": {"averaged": [file.name for file in checkpoints]},
        "generation": {name: getattr(settings, name) for name in _SEARCH_SETTINGS},
        "scores": scores,
    }
    if examples:
        result["examples"] = examples
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    _write(run.result_file, text)
    if out is not None:
        _write(out / f"{config.run}-seed{config.seed}.json", text)
    return result


def last_epoch_checkpoints(directory: Path, count: int) -> list[Path]:
    """Choose the checkpoints to average: those of the last epochs, by the number in their name.

    Args:
        directory: a run's checkpoints; its best, last, averaged and mid-epoch files don't count.
        count: how many.

    Returns:
        At most that many files, oldest first.

    Raises:
        SharingError: there is none.
    """
    files = [file for file in directory.glob("checkpoint*.pt") if _EPOCH_CHECKPOINT.fullmatch(file.name)]
    if not files:
        raise SharingError(f"{directory}: no epoch checkpoint (checkpoint<epoch>.pt) to evaluate")
    return sorted(files, key=_epoch)[-count:]


def _epoch(file: Path) -> int:
    match = _EPOCH_CHECKPOINT.fullmatch(file.name)
    assert match
    return int(match[1])


class _Steps:
    """Remembers from what each step's output was made."""

    def __init__(self, file: Path):
        self._file = file
        self._done: dict[str, dict[str, str]] = {}
        if file.is_file():
            try:
                self._done = json.loads(file.read_text(encoding="utf-8"))
            except json.JSONDecodeError as error:
                raise SharingError(f"{file}: not JSON ({error}); remove it to evaluate anew") from error

    def is_done(self, step: str, inputs: Mapping[str, Any], output: Path) -> bool:
        """Tell whether the output is there, as it was written, and made from these inputs."""
        return output.is_file() and self._done.get(step) == _entry(inputs, output)

    def record(self, step: str, inputs: Mapping[str, Any], output: Path) -> None:
        """Remember a finished step."""
        self._done[step] = _entry(inputs, output)
        _write(self._file, json.dumps(self._done, indent=2) + "\n")


def _entry(inputs: Mapping[str, Any], output: Path) -> dict[str, str]:
    text = json.dumps(inputs, sort_keys=True)
    return {"inputs": hashlib.sha256(text.encode()).hexdigest(), "output": sha256(output)}


def _write(file: Path, text: str) -> None:
    with atomic_write(file) as stream:
        stream.write(text.encode("utf-8"))


def _read_manifest(data: Path) -> dict[str, Any]:
    file = data / "manifest.json"
    if not file.is_file():
        raise SharingError(f"{file}: no such file; name the prepared data directory with --data")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise SharingError(f"{file}: not JSON ({error})") from error


def _check_names(test_lenpen: Mapping[str, float], tests: list[str]) -> None:
    for name in test_lenpen:
        if name not in tests:
            raise SharingError(
                f"evaluate.test_lenpen names {name}; the data's test sets are {', '.join(tests)}"
            )


def _find_baseline(
    run: RunDirectory, config: Any, settings: EvaluationSettings, named: Path | None, console: Console
) -> RunDirectory | None:
    """Find the run to compare with; one that the configuration names may be missing, which is said."""
    if named is not None:
        return RunDirectory(named)
    if settings.baseline is None or settings.baseline == config.run:
        return None
    beside = RunDirectory(run.path.parent / f"{settings.baseline}-seed{config.seed}")
    if beside.result_file.is_file():
        return beside
    console.print(
        f"no comparison with the baseline {settings.baseline}: {beside.path} is not evaluated yet"
        " (evaluate it, then this run again)",
        markup=False,
    )
    return None


def _read_baseline(baseline: RunDirectory | None, test: str, reference: Path, segments: int):
    if baseline is None:
        return None
    file = baseline.evaluation / f"{test}.hypothesis"
    if not file.is_file():
        raise SharingError(f"baseline {baseline.path} has no {file.name}: evaluate it first")
    return baseline.path.name, read_parallel(file, reference, segments)


def _portable(command: list[str], config: Any) -> list[str]:
    """Rewrite the directories of a training command to where a clone has them by default."""
    run = f"runs/{config.dataset}/{config.run}-seed{config.seed}"
    places = {
        "fairseq-train": f"data/{config.dataset}/bin",
        "--user-dir": "fairseq_sharing",
        "--save-dir": f"{run}/checkpoints",
        "--tensorboard-logdir": f"{run}/tensorboard",
    }
    return [places.get(before, word) for before, word in zip(["", *command], command, strict=False)]
