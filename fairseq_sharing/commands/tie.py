"""Tie a trained checkpoint: make a model with shared layers from its weights, to continue training with them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq_sharing.checkpoints.initial_values import INITS
from fairseq_sharing.errors import SharingError
from fairseq_sharing.finite import whole_number
from fairseq_sharing.layer_map import MAX_LAYERS, SCOPES, SHARING_CHOICES, STACKS
from fairseq_sharing.terminal import Console

HELP = "make a model with shared layers from a trained checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``tie``."""
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="trained checkpoint with any layer map, or run directory (its last checkpoints are averaged)",
    )
    for stack in ("", *STACKS):
        _add_sharing(parser, f"--{stack}-" if stack else "--", f" ({stack} only)" if stack else "")
    for stack in STACKS:
        parser.add_argument(
            f"--{stack}-layers",
            type=whole_number(most=MAX_LAYERS),
            metavar="N",
            help=f"layers of the new {stack}; as in the checkpoint if not given",
        )
    parser.add_argument(
        "--init",
        choices=INITS,
        help="what fills a parameter set: stepwise (M layers at equal distances, including the first and the last; the "
        "default), average (the mean of the layers that use the set; the default with --depth-lora) or first (the "
        "first layer that uses the set)",
    )
    parser.add_argument(
        "--align",
        action="store_true",
        help="before averaging, reorder the feed-forward units and heads of each layer to match the first of its set",
    )
    _add_depth(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="checkpoint to write")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="prepared or binarized data: print the validation loss of both checkpoints, computed by fairseq-validate",
    )


def _add_sharing(parser: argparse.ArgumentParser, flag: str, only: str) -> None:
    """Add the five sharing flags of one stack or of both."""
    choices = ", ".join(SHARING_CHOICES)
    parser.add_argument(f"{flag}sharing", metavar="STRATEGY", help=f"which layers share: {choices}{only}")
    parser.add_argument(
        f"{flag}unique-layers", type=whole_number(most=MAX_LAYERS), metavar="M", help=f"number of parameter sets{only}"
    )
    parser.add_argument(f"{flag}layer-map", metavar="LABELS", help=f"layer map for custom, such as 0,1,1,0{only}")
    components = "maps of single components, such as ffn=universal;self_attn=cycle:2"
    parser.add_argument(f"{flag}component-sharing", metavar="MAPS", help=f"{components}{only}")
    parts = f"layer, or a comma-separated list of {', '.join(SCOPES[1:])}"
    parser.add_argument(f"{flag}sharing-scope", metavar="PARTS", help=f"what is shared: {parts}{only}")


def _add_depth(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the depth parameters, which are those of training."""
    parser.add_argument(
        "--depth-lora",
        "--lora-rank",
        type=whole_number(),
        metavar="R",
        help="rank of a low-rank adapter per depth, fitted to the difference between the trained and the shared matrix",
    )
    parser.add_argument(
        "--depth-lora-of",
        metavar="LIST",
        help="matrices with an adapter, a comma-separated list of q, k, v, out, fc1, fc2; all if not given",
    )
    parser.add_argument(
        "--fit-iterations",
        type=whole_number(0),
        default=0,
        metavar="K",
        help="alternate K times between fitting shared matrices and adapters, which reduces the error; default: 0",
    )
    help_of = {
        "scale": "one factor per depth and unit of the keys, values and feed-forward network, initially 1",
        "bias": "every depth keeps the biases of its layer",
        "norm": "every depth keeps the LayerNorms of its layer",
    }
    for kind, text in help_of.items():
        parser.add_argument(f"--depth-{kind}", action="store_true", default=None, help=text)


def run(args: argparse.Namespace) -> None:
    """Write the tied checkpoint and report or measure the validation loss."""
    import shlex

    import fairseq_sharing
    from fairseq_sharing.checkpoints.files import load_checkpoint, save_atomically
    from fairseq_sharing.checkpoints.tie import tie
    from fairseq_sharing.decoding.model_files import checkpoint_file
    from fairseq_sharing.files import check_output_file, refuse_input

    check_output_file(args.output, "--output")
    fairseq_sharing.register()
    data = _binarized(args.data) if args.data is not None else None
    path = checkpoint_file(args.checkpoint)
    checkpoint = load_checkpoint(path)
    refuse_input(args.output, "--output", [path])
    try:
        tied = tie(checkpoint, vars(args), args.init, args.align, args.fit_iterations)
    except SharingError as error:
        raise SharingError(f"{path}: {error}") from error
    save_atomically(tied, args.output)
    console = Console(highlight=False, soft_wrap=True)
    _report_loss({path: checkpoint, args.output: tied}, data, console)
    console.print(
        f"{args.output}: {args.output.stat().st_size:,} bytes; train with: fairseq-train DATA "
        f"{shlex.join(_training_flags(args, tied))} --finetune-from-model {args.output} and the other training flags",
    )


def _training_flags(args: argparse.Namespace, tied: Mapping[str, Any]) -> list[str]:
    """Return the flags that give the model of the tied checkpoint its layer maps."""
    from fairseq_sharing.adapters.kinds import DepthKinds
    from fairseq_sharing.checkpoints.arguments import model_arguments
    from fairseq_sharing.checkpoints.tie import SHARING_OPTIONS
    from fairseq_sharing.options import flag_of
    from fairseq_sharing.resources import PACKAGE_DIR

    given = [(name, getattr(args, name)) for name in (*SHARING_OPTIONS, "encoder_layers", "decoder_layers")]
    words = ["--user-dir", str(PACKAGE_DIR), "--arch", model_arguments(tied)["arch"]]
    words += [word for name, value in given if value is not None for word in (flag_of(name), str(value))]
    return words + DepthKinds.read(args).flags.split()


def _binarized(data: Path) -> Path:
    """Return the folder of the binarized data in a prepared data directory, or the folder itself."""
    from fairseq_sharing.preparation.manifest import read_manifest

    if not data.is_dir():
        raise SharingError(f"--data {data}: no such folder; allowed: a prepared data directory, or binarized data")
    return data / "bin" if read_manifest(data) else data


def _report_loss(checkpoints: Mapping[Path, Any], data: Path | None, console: Console) -> None:
    """Print the validation loss of the checkpoint and of the tied one, or the commands that measure it."""
    import shlex

    from fairseq_sharing.evaluation.validation import validate, validation_command

    if data is None:
        console.print("The tied model needs training. Validation loss before and after tying:")
        for path, content in checkpoints.items():
            console.print(f"  {shlex.join(validation_command(content, path, 'DATA'))}")
        return
    for (path, content), when in zip(checkpoints.items(), ("trained", "tied, before training"), strict=True):
        values = validate(validation_command(content, path, str(data)))
        shown = ", ".join(f"{name} {values[name]:g}" for name in ("loss", "nll_loss", "ppl") if name in values)
        console.print(f"validation of {path} ({when}): {shown}")
