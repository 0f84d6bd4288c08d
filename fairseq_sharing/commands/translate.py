"""Translate plain text from a file or stdin, line by line and in order."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

from fairseq_sharing.commands.depth_flags import add_depth_flags, depth_request, shown_counts
from fairseq_sharing.decoding.search import QUANTIZATIONS, Search
from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.settings import ENGINES
from fairseq_sharing.finite import MAX_BEAM, finite_number, whole_number
from fairseq_sharing.options import flag_of
from fairseq_sharing.terminal import Console, say, visible

HELP = "translate plain text with a run, a checkpoint or an exported model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``translate``."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="run directory, checkpoint, ensemble of checkpoints (a.pt:b.pt), or folder of export --to ctranslate2",
    )
    parser.add_argument(
        "input", nargs="?", metavar="INPUT", default="-", help="UTF-8 text file (.gz too), or - for stdin"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="output file, written when all lines are done; stdout if not given"
    )
    parser.add_argument(
        "--engine", choices=ENGINES, help="default: ctranslate2 for exported models, fairseq for others"
    )
    parser.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        metavar="TYPE",
        help=f"CTranslate2 compute type: {', '.join(QUANTIZATIONS)}; that of the stored weights if not given",
    )
    nbest = "translations per line; above 1, the output is line number, score and text, separated by tabs"
    for name, kind, metavar, text in (
        ("beam", whole_number(most=MAX_BEAM), "N", "beam size"),
        ("lenpen", finite_number, "X", "length penalty"),
        ("nbest", whole_number(most=MAX_BEAM), "N", nbest),
        ("max_len_b", whole_number(), "N", "maximum subwords per translation"),
        ("max_tokens", whole_number(), "N", "source subwords per batch; chosen by the engine if not given"),
    ):
        parser.add_argument(flag_of(name), type=kind, metavar=metavar, default=getattr(Search, name), help=text)
    parser.add_argument(
        "--buffer",
        type=whole_number(),
        metavar="N",
        help="lines to read before translating them; 10,000, or 1 from a terminal, if not given",
    )
    parser.add_argument(
        "--threads",
        type=whole_number(most=1024),
        metavar="N",
        help="CPU threads; all cores (with fairseq: all idle cores) if not given",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device to translate on")
    parser.add_argument("--data", type=Path, metavar="DIR", help="prepared data directory, if it moved since training")
    parser.add_argument(
        "--prepared", action="store_true", help="input and output are lines of subwords, without text preparation"
    )
    add_depth_flags(parser, per_sentence=True)


def run(args: argparse.Namespace) -> None:
    """Translate the lines."""
    from fairseq_sharing.files import atomic_write, check_output_file, refuse_input
    from fairseq_sharing.preparation.progress import progress

    search = Search(**{name: getattr(args, name) for name in ("beam", "lenpen", "nbest", "max_len_b", "max_tokens")})
    if args.buffer is not None and args.buffer < 1:
        raise SharingError(f"--buffer must be at least 1, got {args.buffer}")
    if args.out:
        check_output_file(args.out, "--out")
        refuse_input(args.out, "--out", map(Path, [args.input, args.model, *args.model.split(":")]))
    total = _count(args.input)
    from fairseq_sharing.decoding.translator import Translator

    translator = Translator(
        args.model,
        engine=args.engine,
        quantization=args.quantization,
        data=args.data,
        threads=args.threads,
        device=args.device,
        prepared=args.prepared,
        depth=depth_request(args, per_sentence=True),
    )
    terminal = args.input == "-" and sys.stdin.isatty()
    buffer = args.buffer or (1 if terminal else 10_000)
    with (
        atomic_write(args.out) if args.out else nullcontext(sys.stdout.buffer) as output,
        nullcontext(None) if terminal else progress("translate", total, "sentences") as advance,
    ):
        _translate(translator, search, _lines(args.input), buffer, output, advance)
    if chosen := translator.chosen_depths:
        say(Console(stderr=True), f"sentences per depth: {shown_counts(chosen)}")


def _translate(
    translator: Any, search: Search, lines: Iterator[str], buffer: int, output: IO[bytes], advance: Any
) -> None:
    number = 0
    while chunk := list(itertools.islice(lines, buffer)):
        for hypotheses in translator.hypotheses(chunk, search, advance, first=number + 1):
            number += 1
            for hypothesis in hypotheses:
                head = f"{number}\t{hypothesis.score:.6f}\t" if search.nbest > 1 else ""
                # A vocabulary may contain control characters, which a terminal would execute.
                text = visible(hypothesis.text) if output.isatty() else hypothesis.text
                output.write(f"{head}{text}\n".encode())
        output.flush()


def _lines(name: str) -> Iterator[str]:
    from fairseq_sharing.files import decode_lines, read_lines

    return decode_lines(sys.stdin.buffer, "standard input") if name == "-" else read_lines(Path(name))


def _count(name: str) -> int | None:
    """Count the lines of a file and reject any that is not text before work starts; None for stdin and pipes."""

    if name == "-":
        return None
    if Path(name).is_dir():
        raise SharingError(f"{name}: a directory; allowed: a text file")
    return sum(1 for _ in _lines(name)) if Path(name).is_file() or not Path(name).exists() else None
