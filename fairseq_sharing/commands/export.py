"""Write a trained model for other programs: stock fairseq's transformer, or CTranslate2 for fast translation."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fairseq_sharing.decoding.search import QUANTIZATIONS

if TYPE_CHECKING:
    from rich.console import Console

HELP = "write a model for stock fairseq or CTranslate2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``export``."""
    parser.add_argument("model", metavar="MODEL", help="a run directory (its last checkpoints' mean) or a checkpoint")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "--materialize",
        action="store_true",
        help="write all N layers, under fairseq's own names and in plain dicts: fairseq-generate needs no --user-dir",
    )
    target.add_argument(
        "--to",
        choices=("ctranslate2",),
        help="write a folder for fairseq-sharing translate and CTranslate2, each shared tensor once",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="PATH", help="the file or folder to write")
    parser.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        metavar="TYPE",
        help=f"for CTranslate2, type of the stored weights: {', '.join(QUANTIZATIONS)}; fp32 if not given",
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="prepared data directory, if it moved since training")


def run(args: argparse.Namespace) -> None:
    """Write the exported model."""
    from rich.console import Console

    from fairseq_sharing.decoding.model_files import find_model
    from fairseq_sharing.errors import SharingError

    console = Console(highlight=False, soft_wrap=True)
    if args.materialize:
        for flag in ("quantization", "data"):
            if getattr(args, flag) is not None:
                raise SharingError(f"--{flag} {getattr(args, flag)} is for --to ctranslate2, not for --materialize")
        _materialize(args, console)
        return
    from fairseq_sharing.decoding.ctranslate2_export import export

    files = find_model(args.model, args.data, Console(stderr=True))
    if files.exported:
        raise SharingError(f"{args.model}: is exported already; name a run or a checkpoint")
    exported = export(files, args.output, args.quantization)
    used, stored = exported.tensors
    console.print(
        f"{args.output}: {exported.size:,} bytes, {stored} tensors stored of the {used} that the layers use; "
        f"log-probabilities{f' in {args.quantization}' if args.quantization else ''} differ from fairseq's by "
        f"{exported.difference.mean:.1g} per subword on average, {exported.difference.largest:.1g} at most "
        "(natural logarithm, random sentences)",
        markup=False,
    )
    if exported.depth_tensors:
        console.print(f"Admin's residual weights made {exported.depth_tensors} shared matrices differ by depth")
    console.print(f"translate with: fairseq-sharing translate {args.output} < INPUT", markup=False)


def _materialize(args: argparse.Namespace, console: Console) -> None:
    from rich.console import Console

    from fairseq_sharing.checkpoints.files import load_checkpoint, save_atomically
    from fairseq_sharing.checkpoints.materialize import materialize
    from fairseq_sharing.decoding.model_files import find_model
    from fairseq_sharing.errors import SharingError

    path = Path(args.model)
    if path.is_dir():
        (path,) = find_model(args.model, None, Console(stderr=True)).checkpoints or (path,)
    checkpoint = load_checkpoint(path)
    try:
        stock = materialize(checkpoint)
    except SharingError as error:
        raise SharingError(f"{path}: {error}") from error
    save_atomically(stock, args.output)
    size = args.output.stat().st_size
    console.print(f"{args.output}: {size:,} bytes; translate with: fairseq-generate DATA --path {args.output}")
