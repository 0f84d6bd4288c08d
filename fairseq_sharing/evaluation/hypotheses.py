"""Translate the test sets of a data directory with a run's model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fairseq_sharing.evaluation.generation import generate, read_generated
from fairseq_sharing.evaluation.settings import EvaluationSettings
from fairseq_sharing.evaluation.steps import Steps
from fairseq_sharing.experiment.command_line import flag_words, path_word
from fairseq_sharing.experiment.run_directory import RunDirectory
from fairseq_sharing.options import flag_of

# Flags of fairseq's task for several directions that decoding needs too.
SEVERAL_DIRECTIONS = (
    *("lang_pairs", "langs", "lang_dict", "source_dict", "target_dict", "fixed_dictionary", "lang_tok_style"),
    *("encoder_langtok", "decoder_langtok", "lang_tok_replacing_bos_eos", "langtoks_specs", "langtoks"),
)


class RunTranslator:
    """Translates the test sets of a data directory with a run's model."""

    def __init__(
        self,
        run: RunDirectory,
        data: Path,
        manifest: Mapping[str, Any],
        settings: EvaluationSettings,
        task: str,
    ):
        from fairseq_sharing.preparation.text import Pipeline

        self._run, self._data, self._manifest, self._settings = run, data, manifest, settings
        self._languages = [
            *flag_words("--source-lang", manifest["source_lang"]),
            *flag_words("--target-lang", manifest["target_lang"]),
        ]
        train = run.config().get("train", {})
        for option in SEVERAL_DIRECTIONS if train.get("lang_pairs") else ():
            if (value := train.get(option)) is not None and value is not False:
                self._languages += [flag_of(option), *([] if value is True else [_word(value)])]
        self._task = task
        self._pipeline = Pipeline.from_manifest(data)

    def translate(
        self,
        test: Mapping[str, Any],
        checkpoint: Path,
        inputs: Mapping[str, Any],
        steps: Steps,
        console: Console,
    ) -> list[str]:
        """Return the detokenized translations of a test set; reuse the last ones if nothing has changed."""
        name, segments, settings = test["name"], int(test["segments"]), self._settings
        search = {
            "beam": settings.beam,
            "lenpen": settings.test_lenpen.get(name, settings.lenpen),
            "max_tokens": settings.max_tokens,
            # Only if they differ from fairseq's defaults, so that existing translations remain valid.
            **({"max_len_a": settings.max_len_a} if settings.max_len_a else {}),
            **({"max_len_b": settings.max_len_b} if settings.max_len_b != EvaluationSettings.max_len_b else {}),
        }
        output = self._run.evaluation / f"{name}.generate.txt"
        inputs = {**inputs, **search, "subset": test["subset"], "data": self._manifest["files"]}
        if steps.is_done(name, inputs, output):
            tokens = read_generated(output, segments)
        else:
            words = [path_word(self._data / "bin"), *flag_words("--path", checkpoint)]
            words += [*flag_words("--gen-subset", test["subset"]), *flag_words("--task", self._task), *self._languages]
            for option, value in search.items():
                words += [flag_of(option), str(value)]
            tokens = generate(words, output, segments, name, console)
            steps.record(name, inputs, output)
        return [self._pipeline.decode(line) for line in tokens]


def _word(value: Any) -> str:
    return str(value) if isinstance(value, str) or not isinstance(value, Sequence) else ",".join(map(str, value))
