"""Export models to Hugging Face, and compare the translations of its ``generate`` with those of fairseq's beam search.

Run: python -m benchmarks.decoding.huggingface RUN... [--sizes CHECKPOINT...] [--output FILE]

Each RUN is a run directory or a checkpoint. Both sides read plain text and use one thread. "same" is the number of
sentences whose best hypotheses have equal subwords, "same_text" that of equal texts; Hugging Face omits unknown words,
which fairseq prints. The models of --sizes are exported only.
"""

import argparse
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from fairseq.data import Dictionary

from benchmarks.decoding.speed import read_test
from benchmarks.record import environment, write
from fairseq_sharing.decoding.fairseq_engine import FairseqEngine, load_models
from fairseq_sharing.decoding.huggingface_export import export
from fairseq_sharing.decoding.huggingface_library import find_class, quiet
from fairseq_sharing.decoding.huggingface_tokenizer import load_tokenizer
from fairseq_sharing.decoding.model_files import ModelFiles, find_model
from fairseq_sharing.decoding.search import Search
from fairseq_sharing.evaluation.scoring import score
from fairseq_sharing.preparation.text import Pipeline
from fairseq_sharing.terminal import Console


def sizes(files: ModelFiles, folder: Path) -> dict[str, Any]:
    """Export a model with all layers and with shared weights stored once; return classes, sizes and differences."""
    (model,), _, _ = load_models(files)
    sharing = getattr(model, "sharing", {})
    result: dict[str, Any] = {
        "layer_map": {stack: list(part.layer_map) for stack, part in sharing.items()},
        "admin": any(name.endswith("residual_weight") for name in model.state_dict()),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    shares = any(part.shares for part in sharing.values())
    for name, keep in (("all_layers", False), ("shared_once", True))[: 1 + shares]:
        exported = export(files, folder / name, keep_sharing=keep)
        result[name] = {
            "class": exported.architecture,
            "bytes": exported.size,
            "tensors": exported.tensors,
            "largest_difference": exported.difference.largest,
        }
        if not keep:
            result["tokenizer"] = exported.tokenizer
    return result


def generate(exported: Path, result: dict[str, Any], lines: list[str]) -> tuple[list[Any], list[str]]:
    """Translate with Hugging Face, with nothing passed to ``generate``; return numbers of subwords and texts."""
    tokenizer = load_tokenizer(exported, result["tokenizer"])
    with quiet():
        loaded = find_class(result["all_layers"]["class"]).from_pretrained(exported).eval()
    ids: list[Any] = []
    for first in range(0, len(lines), 50):
        inputs = tokenizer(lines[first : first + 50], return_tensors="pt", padding=True, truncation=True)
        ids += loaded.generate(**inputs).tolist()
    return ids, tokenizer.batch_decode(ids, skip_special_tokens=True)


def compare(
    files: ModelFiles, result: dict[str, Any], exported: Path, lines: list[str], references: list[str]
) -> dict[str, Any]:
    """Translate a test set with both; return how many hypotheses are the same, and BLEU."""
    assert files.manifest is not None
    assert files.dictionaries is not None
    ids, texts = generate(exported, result, lines)
    pipeline, engine = Pipeline.from_manifest(files.manifest), FairseqEngine(files, 1, "cpu")
    found = dict(engine.translate([pipeline.encode(line).split() for line in lines], Search()))
    wanted = [found[number][0].text for number in range(len(lines))]
    dictionary = Dictionary.load(str(files.dictionaries / f"dict.{files.languages['target']}.txt"))
    shown = {dictionary.unk(), *range(dictionary.nspecial, len(dictionary))}
    subwords = [" ".join(dictionary[word] for word in row if word in shown) for row in ids]
    decoded = [pipeline.decode(line) for line in wanted]
    return {
        "sentences": len(lines),
        "same": sum(map(str.__eq__, subwords, wanted)),
        "same_text": sum(map(str.__eq__, texts, decoded)),
        "with_unknown_words": sum("<unk>" in line.split() for line in wanted),
        "bleu": {"huggingface": score(texts, references)["bleu"], "fairseq": score(decoded, references)["bleu"]},
    }


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure everything and return the result."""
    torch.set_num_threads(1)
    result = environment()
    result["versions"] |= {name: metadata.version(name) for name in ("transformers", "safetensors", "tokenizers")}
    result["note"] = "a demonstration: one run per model"
    result["search"] = {"beam": Search().beam, "lenpen": Search().lenpen, "max_len_b": Search().max_len_b}
    result["models"] = []
    for number, name in enumerate([*args.models, *args.sizes]):
        files = find_model(name, args.data, Console(stderr=True))
        path = Path(name)
        shown = path.parent.parent.name if path.parent.name == "checkpoints" else path.parent.name
        row = {"name": f"{shown}/{path.name}" if path.is_file() else path.name, **sizes(files, folder / str(number))}
        if name in args.models:
            test, *texts = read_test(files, args.test)
            row |= {"test": test["name"], **compare(files, row, folder / str(number) / "all_layers", *texts)}
        result["models"].append(row)
        print(row)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", metavar="RUN", nargs="+", help="run directories or checkpoints")
    parser.add_argument("--sizes", nargs="*", default=[], metavar="CHECKPOINT", help="models that are exported only")
    parser.add_argument("--data", type=Path, help="prepared data directory, if it moved since training")
    parser.add_argument("--test", help="name of the test set (default: the first of the data)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write(measure(args, Path(folder)), args.output)


if __name__ == "__main__":
    main()
