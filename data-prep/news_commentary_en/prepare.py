"""Prepare text of one language for a language model: split, learn 8,000 SentencePiece pieces, segment, binarise.

Run: python data-prep/news_commentary_en/prepare.py --text news-commentary-v12.de-en.en.gz --out data/news_commentary_en
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import sentencepiece

from fairseq_sharing.preparation.files import atomic_write, read_lines

# Every so many lines, one for validation and one for the test: about 2,000 of each of 230,000.
EVERY, VALID, TEST = 115, 0, 57
PIECES = 8000  # Csordas et al. 2024, MoEUT


def split(text: Path, out: Path) -> dict[str, int]:
    """Spread the lines that are not empty over three files; return how many each got."""
    counts = dict.fromkeys(("train", "valid", "test"), 0)
    with (
        atomic_write(out / "raw/train.txt") as train,
        atomic_write(out / "raw/valid.txt") as valid,
        atomic_write(out / "raw/test.txt") as test,
    ):
        files = {"train": train, "valid": valid, "test": test}
        for number, line in enumerate(read_lines(text)):
            if line.strip():
                name = {VALID: "valid", TEST: "test"}.get(number % EVERY, "train")
                files[name].write((" ".join(line.split()) + "\n").encode())
                counts[name] += 1
    return counts


def main() -> None:
    """Make the data directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="lines of text, plain or .gz")
    parser.add_argument("--out", type=Path, required=True, help="data directory to make")
    parser.add_argument("--pieces", type=int, default=PIECES, help="SentencePiece pieces")
    parser.add_argument("--workers", type=int, default=1, help="processes of fairseq-preprocess")
    args = parser.parse_args()
    for name in ("raw", "pieces"):
        (args.out / name).mkdir(parents=True, exist_ok=True)
    lines = split(args.text, args.out)
    sentencepiece.set_random_generator_seed(1)
    sentencepiece.SentencePieceTrainer.train(
        input=str(args.out / "raw/train.txt"),
        model_prefix=str(args.out / "sentencepiece"),
        vocab_size=args.pieces,
        model_type="bpe",
        split_digits=True,
        character_coverage=0.9995,
        minloglevel=2,
    )
    model = args.out / "sentencepiece.model"
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    tokens = {}
    for name in lines:
        tokens[name] = lines[name]  # an end of sentence each
        with atomic_write(args.out / f"pieces/{name}.txt") as output:
            for line in read_lines(args.out / f"raw/{name}.txt"):
                pieces = processor.encode(line, out_type=str)
                tokens[name] += len(pieces)
                output.write((" ".join(pieces) + "\n").encode())
    prefixes = [word for name in lines for word in (f"--{name}pref", f"{args.out}/pieces/{name}.txt")]
    command = ["fairseq_cli.preprocess", "--only-source", *prefixes, "--destdir", f"{args.out}/bin"]
    with (args.out / "preprocess.log").open("wb") as log:
        words = [sys.executable, "-P", "-m", *command, "--workers", str(args.workers)]
        subprocess.run(words, check=True, stdout=log, stderr=subprocess.STDOUT)
    manifest = {
        "dataset": args.out.name,
        "lines": lines,
        "tokens": tokens,
        "sentencepiece_sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
    }
    (args.out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(manifest))


if __name__ == "__main__":
    main()
