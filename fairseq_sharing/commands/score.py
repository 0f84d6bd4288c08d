"""Recompute the scores of results from their kept hypotheses, for example after an update of sacreBLEU.

A result file is rewritten only if a field changes. Results without kept hypotheses are listed and left as they are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fairseq_sharing.errors import SharingError
from fairseq_sharing.terminal import Console, say

HELP = "recompute the scores of results from their kept hypotheses"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``score``."""
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="results of a study, e.g. results/multi30k, or a run directory"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="prepared data directory; default: data/<dataset>")
    parser.add_argument(
        "--reference",
        nargs="+",
        default=[],
        metavar="TEST=FILE",
        help="raw references of test sets that are not in the data directory",
    )
    parser.add_argument(
        "--tokenize", metavar="NAME", help="sacreBLEU tokenizer for BLEU; default: that of the recorded signature"
    )
    parser.add_argument("--json", action="store_true", help="print the changes as JSON on stdout")


def run(args: argparse.Namespace) -> None:
    """Recompute the scores and print what changed."""
    from fairseq_sharing.evaluation.rescoring import References, rescore

    files = {}
    for word in args.reference:
        test, equals, file = word.partition("=")
        if not (test and equals and file):
            raise SharingError(f"--reference {word}: must be TEST=FILE")
        files[test] = Path(file)
    rescored = rescore(args.folder, References(args.data, files), args.tokenize)
    output = Console()
    if args.json:
        data = [{"file": str(one.file), "changes": one.changes, "without_hypotheses": one.without} for one in rescored]
        output.print_json(data=data, highlight=output.is_terminal)
        return
    for one in rescored:
        lines = [f"{one.file}: {change}" for change in one.changes]
        lines += [f"{one.file}: {test}: no kept hypotheses; left as it is" for test in one.without]
        for line in lines or [f"{one.file}: unchanged"]:
            say(output, line)
