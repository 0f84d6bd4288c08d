"""The step that binarizes one side of a segmented text."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from fairseq_sharing.preparation.binarize import read_dictionary, token_type, write_index
from fairseq_sharing.preparation.parallel import Workers
from fairseq_sharing.preparation.steps import ResumableSteps
from fairseq_sharing.preparation.stream import process_chunks
from fairseq_sharing.preparation.transform import number_chunk


def binarize_text(steps: ResumableSteps, pool: Workers, text: str, dictionary: str, data: str, lines: int) -> None:
    """Write ``DATA.bin`` and ``DATA.idx`` of a text, unless this is already done.

    Args:
        steps: the steps of the data directory; all paths are relative to it.
        pool: the worker processes.
        text: segmented text in the folder ``bpe``, the output of an earlier step.
        dictionary: the dictionary, the output of an earlier step.
        data: the output without suffix.
        lines: number of lines of the text.
    """

    def action() -> dict[str, Any]:
        path = steps.directory / dictionary
        lengths = steps.directory / f"{data}.bin.lengths.tmp"
        outputs = [steps.directory / f"{data}.bin", lengths]
        function = partial(number_chunk, path, steps.hashes[dictionary])
        process_chunks(
            f"binarize {Path(text).name}", [steps.directory / text], outputs, function, pool, lines, steps.key
        )
        write_index(lengths, token_type(len(read_dictionary(path))), steps.directory / f"{data}.idx")
        lengths.unlink()
        return {}

    steps.run(data, {}, [text, dictionary], [f"{data}.bin", f"{data}.idx"], action)
