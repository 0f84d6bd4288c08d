"""Describe an experiment before training: layer maps, parameters, memory and MACs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fairseq_sharing import flags
from fairseq_sharing.description.counts import compare, composed_vocabulary
from fairseq_sharing.description.depth_costs import costs_of_depths, depth_table
from fairseq_sharing.description.drawing import draw_maps
from fairseq_sharing.description.step_memory import DEVICES
from fairseq_sharing.description.tables import bank_table, main_table, map_line
from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.settings import EvaluationSettings
from fairseq_sharing.experiment.config import compose
from fairseq_sharing.files import check_output_file, write_text
from fairseq_sharing.terminal import Console


def describe(
    config: Path,
    overrides: Sequence[str] = (),
    *,
    data: Path | None = None,
    vocabulary: int | None = None,
    length: int = 25,
    memory: float | None = None,
    device: str = "cuda",
    svg: Path | None = None,
    as_json: bool = False,
) -> None:
    """Print the description of an experiment, with vanilla models of N and M layers for comparison.

    Args:
        config: a study or an experiment file.
        overrides: ``row=NAME`` of a study, and ``key=value`` overrides.
        data: a prepared data directory, for the size of its dictionary.
        vocabulary: the dictionary size, if there is no data yet.
        length: source and target tokens per sentence, for MACs and memory.
        memory: device memory in GB (10^9 bytes), to estimate the memory of training and the longest batch that fits;
            None to estimate neither.
        device: ``cuda`` or ``cpu``.
        svg: the file to draw the layer maps to.
        as_json: print JSON instead of tables.

    Raises:
        SharingError: an invalid option, or an unknown dictionary size.
    """
    if length < 1:
        raise SharingError(f"--length must be at least 1 token, got {length}")
    if memory is not None and memory <= 0:
        raise SharingError(f"--memory must be more than 0 GB, got {memory:g}")
    if svg is not None:
        check_output_file(svg, "--svg")
    if device not in DEVICES:
        raise SharingError(f"--device must be one of {', '.join(DEVICES)}, got {device}")
    composed = compose(config, overrides, check=flags.check)
    EvaluationSettings.of(composed.evaluate)
    args = flags.parse(composed.train)
    size = composed_vocabulary(composed, data, vocabulary)
    with Console(stderr=True).status("counting parameters and MACs" + (" and training memory" if memory else "")):
        models = compare(str(composed.run), args, size, length, memory=memory and 1e9 * memory, device=device)
        depths = costs_of_depths(args, size, length)
    maps = models[0].maps
    if svg is not None:
        labels = {row.title: row.labels for row in maps}
        write_text(svg, draw_maps(labels, sets={row.title: row.labels_in_space for row in maps}))
    console = Console(highlight=False, soft_wrap=True)
    if as_json:
        by_depth = {"depths": [asdict(cost) for cost in depths]} if depths else {}
        settings = {"vocabulary": size, "length": length, "memory": memory, "device": device}
        console.print_json(json.dumps({**settings, "models": [asdict(model) for model in models], **by_depth}))
        return
    width = max(len(row.title) for row in maps)
    for row in maps:
        console.print(map_line(row, width))
    for stack, added in models[0].depth_steps.items():
        if added:
            console.print(f"{stack}  {added}")
    for line in models[0].depth_kinds:
        console.print(line)
    console.print(main_table(models, size, length, memory))
    if depths:
        console.print(depth_table(depths))
    if models[0].banks:
        console.print(bank_table(models[0]))
    hints = [f"maps drawn to {svg}" if svg else "draw the maps with --svg FILE"]
    if memory is None:
        hints.append("estimate the memory of training with --memory GB")
    command = shlex.join(["fairseq-sharing", "train", str(config), *overrides])
    console.print("; ".join([*hints, f"train with: {command}"]))
