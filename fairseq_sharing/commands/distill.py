"""Translate the training side of prepared data with a trained teacher, as training data for a student.

Re-run the command to resume. Completed steps are skipped unless a setting, the teacher or its data changed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fairseq_sharing.decoding.search import Search
from fairseq_sharing.distillation.settings import DEFAULT_FILTERS, FILTERS, TARGETS, DistillationSettings
from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.settings import ENGINES
from fairseq_sharing.finite import MAX_BEAM, finite_number, whole_number
from fairseq_sharing.options import flag_of
from fairseq_sharing.terminal import Console

HELP = "write training data with the translations of a trained teacher"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``distill``."""
    parser.add_argument(
        "models",
        nargs="+",
        metavar="RUN",
        help="teacher: run directory (its last checkpoints are averaged) or checkpoint; several form an ensemble",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="data directory to create or update")
    parser.add_argument("--data", type=Path, metavar="DIR", help="prepared data directory, if it moved since training")
    parser.add_argument(
        "--workers",
        type=whole_number(most=1024),
        metavar="N",
        help="number of processes with one thread each; default: all CPU cores, or 1 with --device cuda",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device to translate on")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON on stdout")
    _add_search(parser.add_argument_group("translations"))
    _add_selection(parser.add_argument_group("training pairs"))


def _add_search(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--targets",
        choices=TARGETS,
        default=DistillationSettings.targets,
        help="best (of the beam search), interpolate (highest sentence BLEU among the N best translations) or sample",
    )
    group.add_argument("--engine", choices=ENGINES, help="default: ctranslate2, or fairseq for an ensemble")
    group.add_argument(
        "--beam",
        type=whole_number(most=MAX_BEAM),
        metavar="N",
        help=f"beam size; default: {Search.beam}, or --nbest if that is larger",
    )
    group.add_argument(
        "--nbest",
        type=whole_number(most=MAX_BEAM),
        metavar="N",
        help="number of translations for interpolate; default: the beam size",
    )
    temperature = "temperature of the teacher's distribution, for sample; below 1 favors likely words"
    _add_settings(
        group,
        ("lenpen", finite_number, "X", "length penalty"),
        ("max_len_b", whole_number(), "N", "maximum subwords per translation"),
        ("max_tokens", whole_number(), "N", "source subwords per batch"),
        ("temperature", finite_number, "X", temperature),
        ("seed", whole_number(0), "N", "seed, for sample"),
    )


def _add_settings(group: argparse._ArgumentGroup, *flags: tuple[str, Callable[[str], Any], str, str]) -> None:
    """Add flags with the defaults of the settings: name, type, metavar and help."""
    for name, kind, metavar, text in flags:
        default = getattr(DistillationSettings, name)
        group.add_argument(flag_of(name), type=kind, metavar=metavar, default=default, help=text)


def _add_selection(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--filter",
        metavar="NAMES",
        default=",".join(DEFAULT_FILTERS),
        help=f"remove translations: comma-separated list of {', '.join(FILTERS)}; or none. empty: no words; "
        "unfinished: cut off at --max-len-b; ratio: see --max-ratio; copied: equal to the source; repeated: a "
        "sequence of 1 to 4 subwords more than 3 times in a row",
    )
    bleu = "remove translations with a lower sentence BLEU against the reference; 0 keeps all"
    _add_settings(
        group,
        ("max_ratio", finite_number, "X", "for ratio: one side has at most X times as many subwords as the other"),
        ("min_bleu", finite_number, "X", bleu),
    )
    group.add_argument("--keep-original", action="store_true", help="also keep the original pairs")
    group.add_argument(
        "--upsample-original",
        type=whole_number(most=1000),
        metavar="K",
        help="number of copies of the original pairs, with --keep-original; default: 1",
    )


def run(args: argparse.Namespace) -> None:
    """Distill."""
    from fairseq_sharing.distillation.distill import distill
    from fairseq_sharing.distillation.teacher import find_teacher
    from fairseq_sharing.files import check_output_folder

    if args.upsample_original is not None and not args.keep_original:
        raise SharingError(f"--upsample-original {args.upsample_original}: requires --keep-original")
    names = ("targets", "beam", "nbest", "lenpen", "max_len_b", "max_tokens", "temperature", "seed")
    chosen = {name: getattr(args, name) for name in names}
    filters = () if args.filter == "none" else tuple(args.filter.split(","))
    check_output_folder(args.out, "--out")

    def settings(engine: str) -> DistillationSettings:
        return DistillationSettings(
            **chosen,
            engine=engine,
            filters=filters,
            max_ratio=args.max_ratio,
            min_bleu=args.min_bleu,
            originals=(args.upsample_original or 1) if args.keep_original else 0,
        )

    settings(args.engine or "ctranslate2")  # refuses invalid values before anything is read
    teacher = find_teacher(args.models, args.data, args.engine, args.device, Console(stderr=True))
    manifest = distill(teacher, settings(teacher.engine), args.out, args.workers)
    if args.json:
        Console().print_json(data=manifest)
