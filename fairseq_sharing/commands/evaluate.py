"""Translate and score a run's test sets with sacreBLEU, or score translation files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairseq_sharing.finite import finite_number
from fairseq_sharing.options import flag_of

if TYPE_CHECKING:
    from rich.table import Table

HELP = "average a run's checkpoints, translate its test sets and score them with sacreBLEU; or score plain files"

_SETTINGS = ("average_last", "beam", "lenpen", "max_tokens", "tokenize")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``evaluate``."""
    optional: dict[str, Any] = {"default": argparse.SUPPRESS}
    run = parser.add_argument_group("evaluate a run")
    run.add_argument(
        "evaluated", nargs="?", type=Path, metavar="RUN", help="run directory of train, or a study with row=NAME"
    )
    run.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for a study: row=NAME and seed=N only")
    run.add_argument(
        "--baseline",
        type=Path,
        metavar="RUN",
        help="evaluated run to compare with, by paired bootstrap resampling",
        **optional,
    )
    run.add_argument("--out", type=Path, metavar="DIR", help="copy the result to DIR/<run>-seed<seed>.json", **optional)
    run.add_argument("--data", type=Path, metavar="DIR", help="data directory, if it moved since training", **optional)
    overrides = "overrides evaluate."
    run.add_argument(
        "--average-last",
        type=int,
        metavar="N",
        help=f"average the last N epoch checkpoints; {overrides}average_last",
        **optional,
    )
    run.add_argument("--beam", type=int, metavar="N", help=f"beam size; {overrides}beam", **optional)
    run.add_argument("--lenpen", type=finite_number, metavar="X", help=f"length penalty; {overrides}lenpen", **optional)
    run.add_argument("--max-tokens", type=int, metavar="N", help=f"tokens per batch; {overrides}max_tokens", **optional)
    files = parser.add_argument_group("score plain files, one detokenized sentence per line (.gz too)")
    files.add_argument("--hypothesis", type=Path, metavar="FILE", help="translations to score", **optional)
    files.add_argument("--reference", type=Path, metavar="FILE", help="raw reference translations", **optional)
    files.add_argument(
        "--baseline-hypothesis", type=Path, metavar="FILE", help="translations to compare with", **optional
    )
    files.add_argument(
        "--target-lang",
        metavar="LANG",
        help="language code; Chinese, Japanese and Korean have their own BLEU tokenizers",
        **optional,
    )
    parser.add_argument(
        "--tokenize",
        metavar="NAME",
        help=f"sacreBLEU tokenizer for BLEU, e.g. char or flores200; chosen by target language if not given; "
        f"{overrides}tokenize",
        **optional,
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")


def run(args: argparse.Namespace) -> None:
    """Evaluate the run, or score the files."""
    from fairseq_sharing.console import make_console

    given = vars(args)
    _check(given)
    output = make_console()
    if args.evaluated is None:
        from fairseq_sharing.evaluation.scoring import score_files

        scores = score_files(
            args.hypothesis,
            args.reference,
            given.get("baseline_hypothesis"),
            given.get("target_lang", ""),
            given.get("tokenize"),
        ).as_dict()
        result: dict[str, Any] = scores
        table = _table(str(args.hypothesis.name), {str(args.reference.name): scores})
    else:
        from fairseq_sharing.evaluation.evaluate import evaluate_run

        result = evaluate_run(
            _find_run(args.evaluated, args.overrides),
            make_console(stderr=True),
            baseline=given.get("baseline"),
            data=given.get("data"),
            out=given.get("out"),
            overrides={name: given[name] for name in _SETTINGS if name in given},
        )
        table = _table(f"{result['run']}, seed {result['seed']}", result["scores"])
    if args.json:
        output.print_json(data=result, highlight=output.is_terminal)
        return
    output.print(table)
    scored = result.get("scores", {"": result})
    for signature in sorted({item for score in scored.values() for item in score["signature"].items()}):
        output.print(": ".join(signature), highlight=False, soft_wrap=True, markup=False)


def _find_run(named: Path, overrides: list[str]) -> Path:
    """Find the run directory, given by its path or as a row and seed of a study."""
    from fairseq_sharing.errors import SharingError
    from fairseq_sharing.experiment.config import compose
    from fairseq_sharing.experiment.run_directory import default_directory

    if not overrides:
        if not named.is_dir():
            raise SharingError(f"{named}: no such run directory; for a study, add row=NAME")
        return named
    path = default_directory(compose(named, overrides), Path("runs"))
    if not path.is_dir():
        raise SharingError(f"{path}: no such run directory; train it first")
    return path


def _check(given: dict[str, Any]) -> None:
    """Reject flags of the command's other form."""
    from fairseq_sharing.errors import SharingError

    for_files = ("hypothesis", "reference", "baseline_hypothesis", "target_lang")
    for_runs = ("baseline", "out", "data", *(name for name in _SETTINGS if name != "tokenize"))
    is_run = given["evaluated"] is not None
    for name in for_files if is_run else for_runs:
        if name in given:
            other = "plain files (--hypothesis and --reference)" if is_run else "a RUN"
            raise SharingError(f"{flag_of(name)}: allowed only with {other}")
    if not is_run and not ("hypothesis" in given and "reference" in given):
        raise SharingError("give a RUN, or both --hypothesis and --reference")


def _table(title: str, scores: dict[str, dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("test set", overflow="fold")
    for column in ("segments", "BLEU", "95% interval", "chrF", "p"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, score in scores.items():
        low, high = score["bleu_interval"]
        p_value = score["p_value"]
        table.add_row(
            name,
            f"{score['segments']:,}",
            f"{score['bleu']:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{score['chrf']:.2f}",
            "-" if p_value is None else f"{p_value:.3f}",
        )
    baseline = next((score["baseline"] for score in scores.values() if score["baseline"]), None)
    if baseline:
        table.caption = f"p: paired bootstrap of BLEU against {baseline}"
    return table
