"""Fetch or read parallel texts, clean, tokenize, cut into subwords and binarize them for fairseq.

A step that is done is skipped; a changed setting, source or output is done anew; a stopped run goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fairseq_sharing.errors import SharingError
from fairseq_sharing.options import flag_of
from fairseq_sharing.preparation.recipe import (
    CLEANING,
    DEFAULT_SUBWORD_SIZE,
    files_recipe,
    load_recipe,
    recipe_names,
)
from fairseq_sharing.preparation.text import SUBWORDS, TOKENIZERS

HELP = "fetch, clean, tokenize, segment and binarize a dataset"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    recipes = ", ".join(recipe_names())
    parser.add_argument(
        "dataset",
        metavar="DATASET",
        help=f"{recipes}; 'files' for texts of your own; or the path of a recipe.yaml",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="data directory to make or bring up to date")
    parser.add_argument(
        "--mirror", metavar="DIR", help="folder, file:// or http(s):// URL that holds the files to fetch"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: all processors)")
    parser.add_argument("--json", action="store_true", help="print the manifest on standard output")

    files = parser.add_argument_group("texts of your own (dataset 'files'; PREFIX.en and PREFIX.de, or .en.gz ...)")
    files.add_argument("--train", metavar="PREFIX", help="training texts")
    files.add_argument("--valid", metavar="PREFIX", help="validation texts")
    files.add_argument(
        "--test",
        action="append",
        default=[],
        metavar="NAME=PREFIX",
        help="a test set; may be given several times",
    )

    settings = parser.add_argument_group("settings (default: those of the recipe)")
    settings.add_argument("--source-lang", metavar="LANG", help="language to translate from")
    settings.add_argument("--target-lang", metavar="LANG", help="language to translate to")
    settings.add_argument("--tokenizer", metavar="NAME", help=f"one of {', '.join(TOKENIZERS)}")
    settings.add_argument("--subword", metavar="NAME", help=f"one of {', '.join(SUBWORDS)}")
    settings.add_argument(
        "--subword-size",
        type=int,
        metavar="N",
        help=f"BPE merges or sentencepiece pieces (files: {DEFAULT_SUBWORD_SIZE})",
    )
    for name, value in CLEANING.items():
        flag = flag_of(name)
        settings.add_argument(
            flag, type=type(value), metavar="N", help=f"limit that training pairs keep (files: {value})"
        )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from rich.console import Console

    from fairseq_sharing.preparation.prepare import prepare

    names = ("source_lang", "target_lang", "tokenizer", "subword", "subword_size", *CLEANING)
    settings = {name: getattr(args, name) for name in names}
    if args.dataset == "files":
        recipe = files_recipe(args.train, args.valid, args.test, settings)
    elif args.train or args.valid or args.test:
        raise SharingError(f"--train, --valid and --test are for dataset 'files', got dataset {args.dataset!r}")
    else:
        recipe = load_recipe(args.dataset, settings)
    manifest = prepare(recipe, Path(args.out), args.mirror, args.workers)
    if args.json:
        Console().print_json(data=manifest)
