"""The model card of a run: README.md with the metadata of the Hugging Face Hub, from recorded facts only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from fairseq_sharing import markdown
from fairseq_sharing.decoding.model_files import ModelFiles
from fairseq_sharing.depths.settings import Setting, setting_name
from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.direction import KEYS, direction_of
from fairseq_sharing.experiment.run_directory import RunDirectory
from fairseq_sharing.files import write_text
from fairseq_sharing.layer_map import STACKS, StackSharing, format_map, format_sharing, num_unique
from fairseq_sharing.preparation.manifest import read_manifest
from fairseq_sharing.reporting.metrics import METRICS
from fairseq_sharing.reporting.results import Row, read_result
from fairseq_sharing.terminal import one_line

CARD = "README.md"

_TEMPLATE = Path(__file__).parent / "model_card.md.jinja"
_TYPES = {"bleu": "bleu", "chrf": "chrf", "chrf++": "chrf", "ter": "ter"}  # names of metrics on the Hub


@dataclass(frozen=True)
class Usage:
    """How to translate with the described files.

    Attributes:
        library: name of the library on the Hub.
        language: language of the lines, for highlighting.
        lines: commands or code.
        limits: limits of this form of the model, as sentences.
    """

    library: str
    language: str
    lines: Sequence[str]
    limits: Sequence[str] = ()


@dataclass(frozen=True)
class Shape:
    """What a model consists of.

    Attributes:
        sharing: the maps of each stack.
        parameters: number of parameters, each shared one counted once.
        shares: whether layers share parameters.
    """

    sharing: Mapping[str, StackSharing]
    parameters: int
    shares: bool

    @classmethod
    def of(cls, model: Any) -> Shape:
        """Describe a loaded model of fairseq."""
        own = {stack: StackSharing(tuple(range(len(getattr(model, stack).layers)))) for stack in STACKS}
        sharing = {**own, **getattr(model, "sharing", {})}
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return cls(sharing, parameters, any(shared.shares for shared in sharing.values()))

    @classmethod
    def recorded(cls, result: Mapping[str, Any]) -> Shape:
        """Describe the model of a result."""
        sharing = {
            stack: StackSharing(tuple(labels), tuple(result["scope"][stack]))
            for stack, labels in result["layer_map"].items()
        }
        parameters = result["parameters"]
        return cls(sharing, parameters["unique"], parameters["unique"] < parameters["effective"])

    @property
    def whole_layers(self) -> bool:
        """Whether the maps are those of whole layers."""
        return all(sharing.scope == ("layer",) and not sharing.components for sharing in self.sharing.values())


def card_of_run(path: Path, usage: Usage, data: Path | None = None, license: str | None = None) -> str:
    """Write the model card of a run directory.

    Args:
        path: the run directory.
        usage: how to translate.
        data: directory of the prepared data; None for that of the training.
        license: identifier of the model's license; None leaves it out.

    Returns:
        The text of README.md.

    Raises:
        SharingError: no such run, it is a language model, or its languages are unknown.
    """
    run = RunDirectory(path)
    run.config()  # refuses other directories
    data = data or (Path(recorded) if (recorded := run.record().get("data")) else None)
    manifest = read_manifest(data, KEYS) if data is not None else {}
    if manifest and not manifest["target_lang"]:
        raise SharingError(f"{path}: is a language model; allowed: translation models")
    direction = direction_of(manifest, data) if manifest else run.direction()
    if direction is None:
        raise SharingError(f"{path}: its languages are not recorded; give the prepared data directory with --data")
    languages = dict(zip(("source", "target"), direction, strict=True))
    return model_card(str(path), languages, run, data, usage, license=license)


def run_of(name: str) -> RunDirectory | None:
    """Return the run directory with a name; None if the name is that of a checkpoint."""
    run = RunDirectory(Path(name))
    return run if run.config_file.is_file() else None


def model_card(
    name: str,
    languages: Mapping[str, str],
    run: RunDirectory | None,
    data: Path | None,
    usage: Usage,
    shape: Shape | None = None,
    license: str | None = None,
    depth: Setting | None = None,
) -> str:
    """Write a model card.

    Args:
        name: name of the model if it is no run.
        languages: language code of each side.
        run: the run directory; None for a checkpoint, whose training and scores are unknown.
        data: directory of the prepared data; None if unknown.
        usage: how to translate.
        shape: what the loaded model consists of; None for the recorded result.
        license: identifier of the model's license; None leaves it out.
        depth: the depth of each stack, whose result the card contains; None for all layers.

    Returns:
        The text of README.md. Unknown facts are left out.

    Raises:
        SharingError: a file of the run or of the data is damaged.
    """
    from jinja2 import Environment, StrictUndefined

    config = run.config() if run is not None else {}
    record = run.record() if run is not None else {}
    file = run.result_with(f"-{setting_name(depth)}" if depth else "") if run is not None else None
    result = read_result(file) if file is not None and file.is_file() else {}
    manifest = read_manifest(data, KEYS) if data is not None else {}
    if shape is None and result:
        shape = Shape.recorded(result)
    pair = f"{languages['source']}-{languages['target']}"
    dataset = one_line(manifest.get("dataset") or config.get("dataset") or "")
    what = f"{Row((result,)).title}, trained on {dataset}" if result else one_line(Path(name).resolve().name)
    shares = shape is not None and shape.shares
    facts = {
        "front_matter": _front_matter(languages, license, usage, shares, dataset, what, pair, result),
        "title": f"{pair}: {what}",
        "summary": f"A Transformer that translates from {languages['source']} to {languages['target']}, "
        "trained with fairseq and fairseq-sharing.",
        "artificial": bool(manifest.get("artificial")),
        "shape": _shape(shape, config),
        "parameters": shape.parameters if shape is not None else None,
        "shares": shares,
        "whole_layers": shape is not None and shape.whole_layers,
        "usage": usage.lines,
        "usage_language": usage.language,
        "data": list(_data(manifest)),
        "training": list(_training(record, result)),
        "options": _options(config),
        **_scores(result),
        "limits": list(_limits(languages, usage)),
    }
    environment = Environment(autoescape=False, undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters |= {"plain": markdown.plain, "code": markdown.code_block}
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(facts)


def write_card(folder: Path, files: ModelFiles, model: Any, usage: Usage) -> None:
    """Write the model card of an exported model into its folder.

    Args:
        folder: the exported folder.
        files: the model that was exported.
        model: fairseq's model.
        usage: how to translate with the folder.
    """
    shape = Shape.of(model)
    card = model_card(files.name, files.languages, run_of(files.name), files.manifest, usage, shape, depth=files.depth)
    write_text(folder / CARD, card)


def _front_matter(
    languages: Mapping[str, str],
    license: str | None,
    usage: Usage,
    shares: bool,
    dataset: str | None,
    what: str,
    pair: str,
    result: Mapping[str, Any],
) -> str:
    """Format the metadata of the Hub in YAML."""
    fields: dict[str, Any] = {"language": list(languages.values())}
    if license is not None:
        fields["license"] = one_line(license)
    fields |= {"library_name": usage.library, "pipeline_tag": "translation"}
    fields["tags"] = ["translation", "fairseq", "fairseq-sharing", *(["parameter-sharing"] if shares else [])]
    if dataset:
        fields["datasets"] = [dataset]
    scored = {metric for score in result.get("scores", {}).values() for metric in score if metric in _TYPES}
    if scored:
        fields["metrics"] = list(dict.fromkeys(_TYPES[metric] for metric in _TYPES if metric in scored))
        evaluations = [
            {
                "task": {"type": "translation", "name": f"Translation {pair}"},
                "dataset": {"name": test, "type": test},
                "metrics": [
                    {
                        "type": _TYPES[metric],
                        "value": score[metric],
                        "name": METRICS[metric].label,
                        "args": {"signature": score.get("signature", {}).get(metric), "seed": result["seed"]},
                    }
                    for metric in _TYPES
                    if metric in score
                ],
            }
            for test, score in result["scores"].items()
        ]
        fields["model-index"] = [{"name": what, "results": evaluations}]
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=1000)


def _shape(shape: Shape | None, config: Mapping[Any, Any]) -> list[tuple[str, str, str]]:
    """Describe both stacks, one row per property."""
    if shape is None:
        return []

    def row(name: str, values: Mapping[str, Any]) -> tuple[str, str, str]:
        return name, *(str(values.get(stack, "")) for stack in STACKS)  # type: ignore[return-value]

    sharing = shape.sharing
    rows = [row("layers", {stack: len(shared.layer_map) for stack, shared in sharing.items()})]
    if shape.shares:
        rows.append(row("unique layers", {stack: num_unique(shared.layer_map) for stack, shared in sharing.items()}))
        rows.append(row("layer map", {stack: _map(shared) for stack, shared in sharing.items()}))
        rows.append(row("shared parts", {stack: ", ".join(shared.scope) for stack, shared in sharing.items()}))
    train = config.get("train") or {}
    for text, option in (
        ("model dimension", "embed_dim"),
        ("feed-forward dimension", "ffn_embed_dim"),
        ("attention heads", "attention_heads"),
    ):
        values = {stack: train[f"{stack}_{option}"] for stack in STACKS if f"{stack}_{option}" in train}
        if values:
            rows.append(row(text, values))
    return rows


def _map(sharing: StackSharing) -> str:
    return format_sharing(sharing) if sharing.components else format_map(sharing.layer_map)


def _data(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """List what the manifest of the prepared data records."""
    if not manifest:
        return
    if dataset := manifest.get("dataset"):
        yield "dataset", dataset
    recipe, train = manifest.get("recipe"), manifest.get("train")
    splits = recipe.get("splits") if isinstance(recipe, dict) else None
    if isinstance(splits, dict) and (sources := list(dict.fromkeys(_sources(splits.get("train"))))):
        yield "sources of the training data", ", ".join(sources)
    if isinstance(train, dict) and isinstance(train.get("lines"), int):
        yield "training pairs", f"{train['lines']:,}"
    for name in ("tokenizer", "subword"):
        if isinstance(settings := manifest.get(name), dict):
            shown = [
                f"{key.replace('_', ' ')} {value}" for key, value in settings.items() if key not in ("name", "model")
            ]
            yield name, ", ".join([str(settings["name"]), *shown])
    if isinstance(recorded := manifest.get("license"), str):
        yield "license of the data", recorded


def _sources(corpora: Any) -> Iterator[str]:
    """Find the addresses of the texts in a part of a recipe."""
    if isinstance(corpora, list):
        for corpus in corpora:
            yield from _sources(corpus)
    elif isinstance(corpora, dict):
        for key, value in corpora.items():
            if key == "url" and isinstance(value, str) and value:
                yield value
            yield from _sources(value)


def _training(record: Mapping[str, Any], result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """List what the record of the run and its result say about the training."""
    if "seed" in record:
        yield "seed", str(record["seed"])
    if batch := record.get("batch"):
        yield "batch", batch
    if result:
        yield "updates", f"{result['updates']:,}" + (f" in {result['epochs']} epochs" if result.get("epochs") else "")
    if averaged := (result.get("checkpoint") or {}).get("averaged"):
        yield "averaged checkpoints", f"{len(averaged)} ({averaged[0]} to {averaged[-1]})"
    if seconds := record.get("train_seconds"):
        yield "training time", f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"
    if device := record.get("device"):
        yield "device", ", ".join(str(device[key]) for key in ("kind", "name", "count") if key in device)
    if versions := record.get("versions"):
        yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def _options(config: Mapping[Any, Any]) -> str:
    block = config.get("train")
    return OmegaConf.to_yaml(block) if block else ""


def _scores(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table of scores, its columns, the signatures, the seed and the search."""
    scores = result.get("scores", {})
    metrics = [metric for metric in METRICS if any(metric in score for score in scores.values())]
    signatures: dict[tuple[str, str], None] = {}
    for score in scores.values():
        signatures |= {
            (METRICS[key].label, text): None for key, text in score.get("signature", {}).items() if key in METRICS
        }
    generation = result.get("generation") or {}
    names = {"beam": "beam", "lenpen": "length penalty"}
    search = [f"{text} {generation[name]}" for name, text in names.items() if name in generation]
    return {
        "metrics": [METRICS[metric].label for metric in metrics],
        "scores": [
            (test, score.get("segments", ""), [f"{score[one]:.2f}" if one in score else "" for one in metrics])
            for test, score in scores.items()
        ],
        "signatures": list(signatures),
        "seed": result.get("seed"),
        "search": ", ".join(search),
    }


def _limits(languages: Mapping[str, str], usage: Usage) -> Iterator[str]:
    yield f"Translates single sentences from {languages['source']} to {languages['target']} only."
    yield "Characters that are not in the training data become the unknown word."
    yield from usage.limits
