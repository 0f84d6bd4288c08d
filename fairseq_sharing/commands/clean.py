"""Remove checkpoints that no result needs.

For each run that is trained and evaluated, the averaged checkpoints and checkpoint_last.pt are kept: the run can still
be translated with, exported, scored and trained further.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fairseq_sharing.errors import SharingError
from fairseq_sharing.terminal import Console, say

HELP = "remove checkpoints that no result needs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``clean``."""
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("runs"), metavar="DIR", help="run directory, or directory of runs"
    )
    parser.add_argument("--yes", action="store_true", help="remove without asking")
    parser.add_argument("--dry-run", action="store_true", help="print what would be removed and stop")


def run(args: argparse.Namespace) -> None:
    """List the checkpoints that can be removed, ask, and remove them."""
    import sys

    from fairseq_sharing.studies.cleaning import removable_checkpoints, remove
    from fairseq_sharing.studies.listing import size_in_words

    output = Console()
    found = removable_checkpoints(args.folder)
    if not found:
        say(output, f"{args.folder}: nothing to remove")
        return
    for each in found:
        names = f"{len(each.files)} checkpoints ({each.files[0].name} ... {each.files[-1].name})"
        say(output, f"{each.run}: {names}, {size_in_words(each.size)}")
    total = size_in_words(sum(each.size for each in found))
    if args.dry_run:
        output.print(f"{total} could be removed", highlight=False)
        return
    if not args.yes:
        if not sys.stdin.isatty():
            raise SharingError(f"{total} could be removed; confirm with --yes")
        if input(f"Remove {total}? [y/N] ").strip().lower() not in ("y", "yes"):
            output.print("nothing removed")
            return
    for each in found:
        remove(each)
    output.print(f"{total} removed", highlight=False)
