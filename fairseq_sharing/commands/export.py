"""Export a trained model to stock fairseq, to CTranslate2 for fast translation, or to Hugging Face's transformers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fairseq_sharing.commands.depth_flags import add_depth_flags, depth_request
from fairseq_sharing.decoding.search import QUANTIZATIONS
from fairseq_sharing.errors import SharingError
from fairseq_sharing.terminal import Console

if TYPE_CHECKING:
    from fairseq_sharing.decoding.model_files import ModelFiles


HELP = "export a model to stock fairseq, CTranslate2 or Hugging Face"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``export``."""
    parser.add_argument(
        "model", metavar="MODEL", help="run directory (its last checkpoints are averaged) or checkpoint"
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "--materialize",
        action="store_true",
        help="write a stock fairseq checkpoint with all N layers; fairseq-generate then needs no --user-dir",
    )
    target.add_argument(
        "--to",
        choices=("ctranslate2", "huggingface"),
        help="ctranslate2: write a directory for fairseq-sharing translate and CTranslate2; shared tensors are stored "
        "once. huggingface: write a directory for transformers, with tokenizer and model card",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="PATH", help="file or directory to write")
    parser.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        metavar="TYPE",
        help=f"type of the stored CTranslate2 weights: {', '.join(QUANTIZATIONS)}; fp32 if not given",
    )
    parser.add_argument(
        "--keep-sharing",
        action="store_true",
        help="with --to huggingface: store the weights of shared layers once, with a Python file that transformers "
        "loads with trust_remote_code=True; without this flag, all N layers are stored, for a stock class",
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="prepared data directory, if it moved since training")
    add_depth_flags(parser)


def run(args: argparse.Namespace) -> None:
    """Export the model."""
    from fairseq_sharing.files import check_output_file, check_output_folder

    console = Console(highlight=False, soft_wrap=True)
    if args.quantization is not None and args.to != "ctranslate2":
        raise SharingError(f"--quantization {args.quantization}: allowed only with --to ctranslate2")
    if args.keep_sharing and args.to != "huggingface":
        raise SharingError("--keep-sharing: allowed only with --to huggingface")
    if args.materialize:
        if args.data is not None:
            raise SharingError(f"--data {args.data}: allowed only with --to")
        check_output_file(args.output, "--output")
        _materialize(args, console)
        return
    check_output_folder(args.output, "--output")
    {"ctranslate2": _to_ctranslate2, "huggingface": _to_huggingface}[args.to](args, console)


def _find(args: argparse.Namespace) -> ModelFiles:
    from fairseq_sharing.decoding.model_files import find_model

    files = find_model(args.model, args.data, Console(stderr=True))
    if files.exported:
        raise SharingError(f"{args.model}: already exported; give a run directory or a checkpoint")
    return files


def _to_ctranslate2(args: argparse.Namespace, console: Console) -> None:
    from fairseq_sharing.decoding.at_depth import at_depth
    from fairseq_sharing.decoding.ctranslate2_export import export

    with at_depth(_find(args), depth_request(args)) as files:
        exported = export(files, args.output, args.quantization)
    used, stored = exported.tensors
    console.print(
        f"{args.output}: {exported.size:,} bytes, {stored} tensors stored for the {used} that the layers use; "
        f"log-probabilities{f' in {args.quantization}' if args.quantization else ''} differ from fairseq's by "
        f"{exported.difference.mean:.1g} per subword on average, {exported.difference.largest:.1g} at most "
        "(natural logarithm, random sentences)",
    )
    if exported.depth_tensors:
        console.print(
            f"{exported.depth_tensors} tensors are stored in addition, because shared ones differ by depth "
            "(Admin's residual weights, adapters or factors)",
        )
    console.print(f"translate with: fairseq-sharing translate {args.output} < INPUT")


def _to_huggingface(args: argparse.Namespace, console: Console) -> None:
    from fairseq_sharing.decoding.at_depth import at_depth
    from fairseq_sharing.decoding.huggingface_export import export, usage

    with at_depth(_find(args), depth_request(args)) as files:
        exported = export(files, args.output, keep_sharing=args.keep_sharing)
    used, stored = exported.tensors
    console.print(
        f"{args.output}: {exported.architecture}, {exported.size:,} bytes, {stored} tensors stored for the {used} that "
        f"the model uses; log-probabilities differ from fairseq's by {exported.difference.largest:.1g} at most "
        "(natural logarithm, random sentences)",
    )
    if not exported.tokenizer:
        console.print(
            "no tokenizer: transformers has none for this text preparation; give the model the numbers of dict.*.txt"
        )
        return
    console.print("translate with:")
    for line in usage(str(exported.path), exported.tokenizer, args.keep_sharing):
        console.print(f"  {line}")


def _materialize(args: argparse.Namespace, console: Console) -> None:
    from fairseq_sharing.adapters.effective import stored_bytes
    from fairseq_sharing.checkpoints.files import load_checkpoint, save_atomically
    from fairseq_sharing.checkpoints.materialize import materialize
    from fairseq_sharing.decoding.model_files import checkpoint_file
    from fairseq_sharing.depths.checkpoint import load_at_depth
    from fairseq_sharing.files import refuse_input

    path = checkpoint_file(Path(args.model))
    refuse_input(args.output, "--output", [path])
    request = depth_request(args)
    checkpoint = load_at_depth(path, request)[0] if request.given else load_checkpoint(path)
    try:
        stock = materialize(checkpoint)
    except SharingError as error:
        raise SharingError(f"{path}: {error}") from error
    save_atomically(stock, args.output)
    size = args.output.stat().st_size
    added = stored_bytes(stock["model"].values()) - stored_bytes(checkpoint["model"].values())
    if added > 0:
        console.print(f"merged adapters: matrices that layers shared are stored per depth, {added:,} bytes more")
    command = f"fairseq-generate DATA --path {args.output} --required-batch-size-multiple 1"
    console.print(f"{args.output}: {size:,} bytes; translate with: {command}")
