"""Average a model's checkpoints, translate its test sets and score them with sacreBLEU; or score translation files.

A language model is evaluated by its perplexity.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairseq_sharing.commands.depth_flags import NAMES as DEPTH_FLAGS
from fairseq_sharing.commands.depth_flags import add_depth_flags, depth_request, shown_counts
from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.settings import CTRANSLATE2, ENGINES
from fairseq_sharing.finite import finite_number
from fairseq_sharing.options import flag_of
from fairseq_sharing.terminal import Console, say

if TYPE_CHECKING:
    from rich.table import Table

    from fairseq_sharing.decoding.translator import Translator

HELP = "average a run's checkpoints, translate its test sets and score them with sacreBLEU; or score plain files"

_SETTINGS = (
    *("average_last", "engine", "beam", "lenpen", "max_tokens", "tokenize"),
    *("tokens_per_sample", "context_window"),
)
_CHECKPOINTS = ("data_bin", "test", "detokenizer", "run_name", "dataset")
_FILES = ("hypothesis", "reference", "target_lang")
_FORMS = "a RUN, or both --hypothesis and --reference"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``evaluate``."""
    for title, add in (
        ("evaluate a run", _add_run),
        (
            "evaluate checkpoints of fairseq-train, with --data of prepare, or with --data-bin and --test",
            _add_checkpoints,
        ),
        ("score plain files, one detokenized sentence per line (.gz too)", _add_files),
    ):
        add(parser.add_argument_group(title, argument_default=argparse.SUPPRESS))
    parser.add_argument(
        "--tokenize",
        metavar="NAME",
        help="sacreBLEU tokenizer for BLEU, e.g. char or flores200; chosen by target language if not given; "
        "overrides evaluate.tokenize",
        default=argparse.SUPPRESS,
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")


def _add_run(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "evaluated",
        nargs="?",
        type=Path,
        default=None,
        metavar="RUN",
        help="run directory of train, a study with row=NAME, or a directory of checkpoints of fairseq-train",
    )
    group.add_argument(
        "overrides", nargs="*", default=None, metavar="KEY=VALUE", help="for a study: row=NAME and seed=N only"
    )
    group.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="copy the result to DIR/<run>-seed<seed>.json, and its hypotheses to DIR/hypotheses",
    )
    group.add_argument("--data", type=Path, metavar="DIR", help="data directory, if it moved since training")
    group.add_argument(
        "--engine",
        choices=ENGINES,
        help="what translates; ctranslate2 is faster on CPUs and finds the same hypotheses with few exceptions; "
        "overrides evaluate.engine",
    )
    for name, kind, metavar, text in (
        ("average_last", int, "N", "average the last N epoch checkpoints"),
        ("beam", int, "N", "beam size"),
        ("lenpen", finite_number, "X", "length penalty"),
        ("max_tokens", int, "N", "tokens per batch"),
        ("tokens_per_sample", int, "N", "language models: tokens per block of text"),
        ("context_window", int, "N", "language models: tokens of a block that are only context"),
    ):
        group.add_argument(flag_of(name), type=kind, metavar=metavar, help=f"{text}; overrides evaluate.{name}")
    add_depth_flags(group, per_sentence=True)


def _add_checkpoints(group: argparse._ArgumentGroup) -> None:
    from fairseq_sharing.preparation.text import TOKENIZERS

    group.add_argument("--data-bin", type=Path, metavar="DIR", help="output of fairseq-preprocess")
    group.add_argument(
        "--test",
        action="extend",
        nargs="+",
        metavar="NAME=SUBSET,REFERENCE",
        help="test sets: name in the result, subset of --data-bin (test, test1, ...), file of the raw reference",
    )
    group.add_argument(
        "--detokenizer",
        choices=TOKENIZERS,
        help="how to detokenize hypotheses; default: none for SentencePiece, else moses",
    )
    group.add_argument("--run", dest="run_name", metavar="NAME", help="name of the run; default: name of the directory")
    group.add_argument("--dataset", metavar="NAME", help="name of the data; default: name of --data-bin")


def _add_files(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--hypothesis",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="translations of one or more systems; each is compared with the first",
    )
    group.add_argument(
        "--reference", type=Path, nargs="+", metavar="FILE", help="one or more raw reference translations"
    )
    group.add_argument(
        "--target-lang",
        metavar="LANG",
        help="language code; Chinese, Japanese and Korean have their own BLEU tokenizers",
    )


def run(args: argparse.Namespace) -> None:
    """Evaluate the run, or score the files."""

    given = vars(args)
    output = Console()
    if args.evaluated is None:
        _refuse(
            given,
            (*_CHECKPOINTS, *DEPTH_FLAGS, "out", "data", *(name for name in _SETTINGS if name != "tokenize")),
            "a RUN",
        )
        _score_files(given, args.json, output)
        return
    _refuse(given, _FILES, "plain files (--hypothesis and --reference)")
    result = _evaluate(args, given)
    if args.json:
        output.print_json(data=result, highlight=output.is_terminal)
        return
    output.print(_table(f"{result['run']}, seed {result['seed']}", [*result["scores"].items()]))
    _print_depths(result["scores"], output)
    _print_signatures(result["scores"].values(), output)


def _print_depths(scores: dict[str, dict[str, Any]], output: Any) -> None:
    """Print how many sentences took each depth, and what that costs."""
    for name, score in scores.items():
        if "depths" in score:
            macs, whole = score["macs_per_sentence"], score["macs_per_sentence_all_layers"]
            say(
                output,
                f"{name}: sentences per depth: {shown_counts(score['depths'])}; {macs:,} MACs per sentence, "
                f"{100 * macs / whole:.0f}% of all layers",
            )


def _score_files(given: dict[str, Any], as_json: bool, output: Any) -> None:

    if not ("hypothesis" in given and "reference" in given):
        raise SharingError(f"give {_FORMS}")
    from fairseq_sharing.evaluation.file_scores import score_files

    systems = score_files(given["hypothesis"], given["reference"], given.get("target_lang", ""), given.get("tokenize"))
    if as_json:
        output.print_json(data=systems[0] if len(systems) == 1 else systems, highlight=output.is_terminal)
        return
    names = ", ".join(str(path) for path in given["reference"])
    scores = [(system["hypothesis"], system) for system in systems]
    output.print(_table(f"{_files(len(systems))}, against {names}", scores, "system"))
    if len(systems) > 1:
        output.print(
            f"p: paired approximate randomization against {systems[0]['hypothesis']}, 10,000 trials. It concerns "
            f"{_files(len(systems))} only, not the methods that made them: another training run gives other files.",
            highlight=False,
            markup=False,
        )
    _print_signatures(systems, output)


def _files(count: int) -> str:
    return {1: "this file", 2: "these two files"}.get(count, "these files")


def _evaluate(args: argparse.Namespace, given: dict[str, Any]) -> dict[str, Any]:
    from fairseq_sharing.evaluation.checkpoint_directory import PlainData, is_checkpoint_directory
    from fairseq_sharing.evaluation.evaluate import evaluate_checkpoints, evaluate_run
    from fairseq_sharing.files import check_output_folder

    console, out = Console(stderr=True), given.get("out")
    if out is not None:
        check_output_folder(out, "--out")
    depth = depth_request(args, per_sentence=True)
    path = _find_run(args.evaluated, args.overrides)
    overrides = {name: given[name] for name in _SETTINGS if name in given}
    if not is_checkpoint_directory(path):
        _refuse(given, _CHECKPOINTS, "a directory of checkpoints of fairseq-train")
        return evaluate_run(path, console, given.get("data"), out, overrides, depth, _count_macs, _ctranslate2)
    data: Path | PlainData
    if "data" in given:
        _refuse(given, [name for name in _CHECKPOINTS if name != "run_name"], "--data", "without")
        data = given["data"]
    elif "data_bin" in given and "test" in given:
        chosen = {name: given[name] for name in ("detokenizer", "dataset") if name in given}
        data = PlainData(given["data_bin"], given["test"], **chosen)
    else:
        raise SharingError(
            f"{path}: contains checkpoints but no config.yaml of fairseq-sharing train; "
            "give --data-bin and --test, or --data with a prepared data directory"
        )
    return evaluate_checkpoints(
        path, console, data, given.get("run_name"), out, overrides, depth, _count_macs, _ctranslate2
    )


def _count_macs(checkpoint: Path, dictionary: Path) -> int | None:
    from fairseq_sharing.description.checkpoint_macs import macs_of_checkpoint  # imports torch: after the input checks

    return macs_of_checkpoint(checkpoint, dictionary)


def _ctranslate2(
    checkpoint: Path,
    data: Path,
    lines: Sequence[str],
    search: Mapping[str, Any],
    advance: Callable[[int], None],
) -> list[tuple[str, float]]:
    from fairseq_sharing.decoding.search import Search

    asked = Search(**{name: value for name, value in search.items() if name != "max_tokens"})
    found = _translator(checkpoint, data).hypotheses(lines, asked, advance)
    return [(best.text, best.score) for best, *_ in found]


@cache
def _translator(checkpoint: Path, data: Path) -> Translator:
    """Export a model once for all test sets."""
    from fairseq_sharing.decoding.translator import Translator

    return Translator(checkpoint, engine=CTRANSLATE2, data=data, prepared=True)


def _find_run(named: Path, overrides: list[str]) -> Path:
    """Find the run directory, given by its path or as a row and seed of a study."""
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


def _refuse(given: dict[str, Any], names: Any, other: str, relation: str = "with") -> None:
    """Reject flags of another form of the command."""

    for name in names:
        if name in given:
            flag = "--run" if name == "run_name" else flag_of(name)
            raise SharingError(f"{flag}: allowed only {relation} {other}")


def _table(title: str, scores: list[tuple[str, dict[str, Any]]], first: str = "test set") -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(first, overflow="fold")
    rows = [(name, _cells(score)) for name, score in scores]
    for column in rows[0][1]:
        table.add_column(column, justify="right", no_wrap=True)
    for name, cells in rows:
        table.add_row(name, *cells.values())
    return table


def _cells(score: dict[str, Any]) -> dict[str, str]:
    """Format the scores of one row, by the header of their column; p-values are below the scores."""
    from fairseq_sharing.evaluation.scoring import METRICS

    cells = {"segments": f"{score['segments']:,}"}
    if "perplexity" in score:
        cells |= {name: f"{score[name]:,}" for name in ("tokens", "words")}
        cells["perplexity per subword"] = f"{score['perplexity']:,.2f}"
        return cells | {"per word": f"{score['word_perplexity']:,.2f}"}
    low, high = score["bleu_interval"]
    p_values = score.get("p_value") or {}
    for name, header in METRICS.items():
        cells[header] = f"{score[name]:.2f}" + (f"\np={p_values[name]:.4f}" if p_values else "")
        if name == "bleu":
            cells["95% interval"] = f"{low:.2f} to {high:.2f}"
    return cells


def _print_signatures(scores: Any, output: Any) -> None:
    for signature in dict.fromkeys(item for score in scores for item in score.get("signature", {}).items()):
        say(output, ": ".join(signature))
