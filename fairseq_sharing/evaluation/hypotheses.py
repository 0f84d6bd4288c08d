"""Translate the test sets of a data directory with a run's model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fairseq_sharing.evaluation.generation import format_generated, generate, read_generated, sentence_progress
from fairseq_sharing.evaluation.settings import CTRANSLATE2, EvaluationSettings
from fairseq_sharing.evaluation.steps import Steps
from fairseq_sharing.evaluation.test_data import EvaluationData, Subset
from fairseq_sharing.experiment.command_line import flag_words, path_word
from fairseq_sharing.experiment.run_directory import RunDirectory
from fairseq_sharing.files import read_lines, write_text
from fairseq_sharing.options import flag_of, joined

# Flags of fairseq's task for several directions that decoding needs too.
_DIRECTION_OPTIONS = (
    *("lang_pairs", "langs", "lang_dict", "source_dict", "target_dict", "fixed_dictionary", "lang_tok_style"),
    *("encoder_langtok", "decoder_langtok", "lang_tok_replacing_bos_eos", "langtoks_specs", "langtoks"),
)


TranslateWithCTranslate2 = Callable[
    [Path, Path, Sequence[str], Mapping[str, Any], Callable[[int], None]], Sequence[tuple[str, float]]
]
"""Translates with CTranslate2, given a checkpoint, the prepared data directory, the subwords of each sentence, the
settings of the search (beam, lenpen, max_len_b) and a function that counts translated sentences. Returns the subwords
of each translation and its log-probability (natural logarithm) after the length penalty."""


class RunTranslator:
    """Translates test sets with a run's model.

    Args:
        run: the run.
        data: the test sets.
        settings: the settings of the search.
        train: the ``train`` block of the run.
        suffix: distinguishes the files of a model at a smaller depth.
        ctranslate2: translates if the settings ask for CTranslate2.
    """

    def __init__(
        self,
        run: RunDirectory,
        data: EvaluationData,
        settings: EvaluationSettings,
        train: Mapping[str, Any],
        checkpoint: Path,
        inputs: Mapping[str, Any],
        suffix: str = "",
        ctranslate2: TranslateWithCTranslate2 | None = None,
    ):
        self._ctranslate2 = ctranslate2
        self._suffix, self._checkpoint, self._inputs = suffix, checkpoint, inputs
        self._run, self._data, self._settings, self._task = run, data, settings, task_words(train)
        source, target = data.direction
        self._languages = [*flag_words("--source-lang", source), *flag_words("--target-lang", target)]

    def translate(self, test: Subset, steps: Steps, console: Console) -> list[str]:
        """Return the detokenized translations of a test set; reuse the last ones if nothing has changed."""
        name, settings = test.name, self._settings
        search = {
            "beam": settings.beam,
            "lenpen": settings.test_lenpen.get(name, settings.lenpen),
            "max_tokens": settings.max_tokens,
            # Only if they differ from fairseq's defaults, so that existing translations remain valid.
            **({"max_len_a": settings.max_len_a} if settings.max_len_a else {}),
            **({"max_len_b": settings.max_len_b} if settings.max_len_b != EvaluationSettings.max_len_b else {}),
        }
        step = name + self._suffix
        output = self._run.evaluation / f"{step}.generate.txt"
        engine = {"engine": settings.engine} if settings.engine == CTRANSLATE2 else {}
        inputs = {**self._inputs, **search, **engine, "subset": test.subset, "data": self._data.files}
        if steps.is_done(step, inputs, output):
            tokens = read_generated(output, test.segments)
        else:
            tokens = self._generate(test, search, output, steps, console)
            steps.record(step, inputs, output)
        return [self._data.pipeline.decode(line) for line in tokens]

    @property
    def depth_classifier(self) -> dict[str, Any]:
        """How the classifier of a depth per sentence was trained; empty without one."""
        return {}

    def record(self, test: Subset) -> dict[str, Any]:
        """Return what a result states about the translation of a test set besides its scores."""
        return {}

    def _generate(
        self, test: Subset, search: Mapping[str, Any], output: Path, steps: Steps, console: Console
    ) -> list[str]:
        """Return the hypotheses of a test set in subwords, and write them like fairseq-generate."""
        if self._settings.engine == CTRANSLATE2:
            return self._run_ctranslate2(test, search, output, console)
        return self._run_generate(test, self._checkpoint, self._data.binarized, search, output, console)

    def _run_ctranslate2(self, test: Subset, search: Mapping[str, Any], output: Path, console: Console) -> list[str]:
        """Translate the prepared source of a test set with CTranslate2."""
        assert self._ctranslate2 is not None
        assert test.source is not None
        lines = [self._data.pipeline.encode(line) for line in read_lines(test.source)]
        with sentence_progress(test.name, len(lines), console) as advance:
            found = self._ctranslate2(self._checkpoint, self._data.binarized.parent, lines, search, advance)
        write_text(output, format_generated(found))
        return read_generated(output, test.segments)

    def _run_generate(
        self, test: Subset, checkpoint: Path, binarized: Path, search: Mapping[str, Any], output: Path, console: Console
    ) -> list[str]:
        """Run fairseq-generate with a checkpoint on a test set in a folder; see ``generation.generate``."""
        words = [path_word(binarized), *flag_words("--path", checkpoint)]
        words += [*flag_words("--gen-subset", test.subset), *self._task, *self._languages]
        for option, value in search.items():
            words += [flag_of(option), str(value)]
        return generate(words, output, test.segments, test.name, console)


def task_words(train: Mapping[str, Any]) -> list[str]:
    """Return the flags of the task that fairseq-generate does not read from the checkpoint.

    Args:
        train: the ``train`` block of the run.
    """
    words = flag_words("--task", train.get("task") or "translation")
    for name in (
        "max_source_positions",
        "max_target_positions",
        *(_DIRECTION_OPTIONS if train.get("lang_pairs") else ()),
    ):
        value = train.get(name)
        if value is not None and value is not False:
            words += [flag_of(name), *([] if value is True else [str(joined(value))])]
    return [*words, "--truncate-source"] if train.get("truncate_source") else words
