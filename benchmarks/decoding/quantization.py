"""Compare the translations of quantized CTranslate2 models with those of fairseq.

Run: python -m benchmarks.decoding.quantization RUN... [--output results/speed/quantization.json]

For every stored type: the differences of log-probabilities that ``export`` prints, the share of sentences whose best
hypothesis equals fairseq's, and BLEU.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.decoding.speed import read_test
from benchmarks.record import environment, write
from fairseq_sharing.decoding.ctranslate2_export import export
from fairseq_sharing.decoding.model_files import find_model
from fairseq_sharing.decoding.translator import Translator
from fairseq_sharing.evaluation.scoring import score
from fairseq_sharing.terminal import Console

TYPES = (None, "int16", "bfloat16", "int8")


def measure(model: str, beam: int, folder: Path) -> dict[str, Any]:
    """Export a model in every type, and translate a test set with each and with fairseq."""
    files = find_model(model, None, Console(stderr=True))
    test, lines, references = read_test(files, None)

    def translate(name: str, engine: str) -> list[str]:
        return Translator(name, engine=engine).translate(lines, beam=beam)

    expected = translate(model, "fairseq")
    rows = {"fairseq": {"bleu": round(score(expected, references)["bleu"], 2)}}
    for kind in TYPES:
        name = kind or "fp32"
        exported = export(files, folder / name, kind)
        found = translate(str(exported.path), "ctranslate2")
        rows[name] = {
            "mean_difference": exported.difference.mean,
            "largest_difference": exported.difference.largest,
            "same": sum(map(str.__eq__, found, expected)) / len(lines),
            "bleu": round(score(found, references)["bleu"], 2),
        }
        print(Path(model).name, name, rows[name], flush=True)
    return {"model": "/".join(Path(model).parts[-2:]), "test": test["name"], "sentences": len(lines), "types": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", metavar="RUN", nargs="+", help="run directories of fairseq-sharing train")
    parser.add_argument("--beam", type=int, default=4, help="beam size (default: 4)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    models = []
    for model in args.models:
        with tempfile.TemporaryDirectory() as folder:
            models.append(measure(model, args.beam, Path(folder)))
    write({**environment(), "beam": args.beam, "models": models}, args.output)


if __name__ == "__main__":
    main()
