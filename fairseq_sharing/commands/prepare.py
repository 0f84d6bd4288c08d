"""Fetch or read parallel text, then clean, tokenize, segment into subwords and binarize it for fairseq.

Re-run the command to resume. Completed steps are skipped unless a setting, source or output changed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fairseq_sharing.errors import SharingError
from fairseq_sharing.finite import whole_number
from fairseq_sharing.options import flag_of
from fairseq_sharing.preparation.recipe import files_recipe, load_recipe, recipe_names
from fairseq_sharing.preparation.settings import CLEANING, DEFAULT_SUBWORD_SIZE, SENTENCEPIECE
from fairseq_sharing.preparation.text import SUBWORDS, TOKENIZERS
from fairseq_sharing.terminal import Console

HELP = "fetch, clean, tokenize, segment and binarize a dataset"
_LIMITS = {
    "min_tokens": "fewest tokens per side of a training pair",
    "max_tokens": "most tokens per side of a training pair",
    "max_ratio": "largest ratio of the lengths of the two sides of a training pair",
    "max_word_length": "most characters in a word of a training pair",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``prepare``."""
    recipes = ", ".join(recipe_names())
    parser.add_argument(
        "dataset", metavar="DATASET", help=f"{recipes}; 'files' for your own text; or the path of a recipe.yaml"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="data directory to create or update")
    parser.add_argument(
        "--mirror", metavar="DIR", help="directory, or file://, http:// or https:// URL, that contains the files"
    )
    parser.add_argument(
        "--workers", type=whole_number(most=1024), metavar="N", help="number of processes (default: all CPU cores)"
    )
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON on stdout")

    files = parser.add_argument_group("your own text (dataset 'files'; PREFIX.en and PREFIX.de, or .en.gz ...)")
    files.add_argument("--train", metavar="PREFIX", help="training text")
    files.add_argument("--valid", metavar="PREFIX", help="validation text")
    files.add_argument(
        "--test", action="append", default=[], metavar="NAME=PREFIX", help="test set; may be given several times"
    )

    settings = parser.add_argument_group("settings (default: those of the recipe)")
    size = f"number of BPE merges or SentencePiece pieces (files: {DEFAULT_SUBWORD_SIZE})"
    coverage = "fraction of the characters for which SentencePiece learns a piece (default: 1.0; 0.9995 for languages "
    longest = f"longest line from which SentencePiece learns (default: {SENTENCEPIECE['max_sentence_length']:,})"
    flags: tuple[tuple[str, Callable[[str], Any], str, str], ...] = (
        ("source_lang", str, "LANG", "source language"),
        ("target_lang", str, "LANG", "target language"),
        ("tokenizer", str, "NAME", f"one of {', '.join(TOKENIZERS)}"),
        ("subword", str, "NAME", f"one of {', '.join(SUBWORDS)}"),
        ("subword_size", whole_number(), "N", size),
        ("character_coverage", float, "X", f"{coverage}with many characters)"),
        ("max_sentence_length", int, "BYTES", longest),
        *((name, type(value), "N", f"{_LIMITS[name]} (files: {value})") for name, value in CLEANING.items()),
    )
    for name, kind, metavar, text in flags:
        settings.add_argument(flag_of(name), type=kind, metavar=metavar, help=text)


def run(args: argparse.Namespace) -> None:
    """Prepare the dataset."""
    from fairseq_sharing.preparation.prepare import prepare

    names = ("source_lang", "target_lang", "tokenizer", "subword", "subword_size", *SENTENCEPIECE, *CLEANING)
    settings = {name: getattr(args, name) for name in names}
    if args.dataset == "files":
        recipe = files_recipe(args.train, args.valid, args.test, settings)
    elif args.train or args.valid or args.test:
        raise SharingError(f"--train, --valid and --test: dataset {args.dataset!r}; allowed: dataset 'files'")
    else:
        recipe = load_recipe(args.dataset, settings)
    manifest = prepare(recipe, Path(args.out), args.mirror, args.workers)
    if args.json:
        Console().print_json(data=manifest)
