"""Translate test sets with a depth per sentence: fairseq-generate for the sentences of each depth, merged in order."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fairseq_sharing.depths.settings import AUTO, DepthRequest, setting_name
from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.at_depth import reduce_to_depth
from fairseq_sharing.evaluation.generation import read_generated
from fairseq_sharing.evaluation.hypotheses import RunTranslator
from fairseq_sharing.evaluation.settings import EvaluationSettings
from fairseq_sharing.evaluation.steps import Steps
from fairseq_sharing.evaluation.test_data import EvaluationData, Subset
from fairseq_sharing.experiment.environment import torch_threads
from fairseq_sharing.experiment.run_directory import RunDirectory
from fairseq_sharing.files import sha256, write_text
from fairseq_sharing.preparation.binarize import data_names
from fairseq_sharing.sentence_depth.file import check_fit, classifier_file, read_classifier
from fairseq_sharing.sentence_depth.model import load_model, load_subset
from fairseq_sharing.sentence_depth.states import choose_depths, in_batches, refuse_too_long


class SentenceDepthTranslator(RunTranslator):
    """Translates test sets with a run's model, each sentence at the depth that the classifier chooses.

    Args:
        run: the run.
        data: the test sets.
        settings: the settings of the search.
        train: the ``train`` block of the run.
        averaged: the averaged checkpoint, which has a classifier.

    Raises:
        SharingError: there is no classifier, it does not fit the model, or the model translates in several directions.
    """

    def __init__(
        self,
        run: RunDirectory,
        data: EvaluationData,
        settings: EvaluationSettings,
        train: Mapping[str, Any],
        averaged: Path,
        inputs: Mapping[str, Any],
    ):
        self._classifier = read_classifier(averaged)
        self._of_average = inputs
        file = classifier_file(averaged)
        super().__init__(run, data, settings, train, averaged, {**inputs, "classifier": sha256(file)}, f"-{AUTO}")
        languages = dict(zip(("source", "target"), data.direction, strict=True))
        torch.set_num_threads(torch_threads())
        self._model, self._fairseq_task = load_model(averaged, data.binarized, languages)
        check_fit(self._classifier, self._model, file)
        self._chosen: dict[str, list[int]] = {}

    @property
    def depth_classifier(self) -> dict[str, Any]:
        """How the classifier was trained."""
        return self._classifier.training

    def record(self, test: Subset) -> dict[str, Any]:
        """Return what the depths of the sentences of a translated test set cost.

        Returns:
            depths, the number of sentences that took each depth; macs_per_sentence, with the choice of the depth; and
            macs_per_sentence_all_layers. MACs are those of a forward pass over each sentence and a target of the same
            number of tokens.
        """
        classifier, chosen = self._classifier, self._chosen[test.name]
        lengths = self._fairseq_task.dataset(test.subset).src_sizes.tolist()
        names = [setting_name(setting) for setting in classifier.settings]
        last = len(names) - 1
        return {
            "depths": {name: chosen.count(index) for index, name in enumerate(names)},
            "macs_per_sentence": round(classifier.per_sentence(chosen, lengths)),
            "macs_per_sentence_all_layers": round(classifier.costs.at_one_depth(last, lengths)),
        }

    def translate(self, test: Subset, steps: Steps, console: Console) -> list[str]:
        """Choose the depths and translate. The arguments and results are those of ``RunTranslator.translate``."""
        dataset = load_subset(self._fairseq_task, test.subset, self._data.binarized)
        if len(dataset) != test.segments:
            raise SharingError(
                f"{self._data.binarized}: {test.subset} has {len(dataset)} sentences; {test.recorded} {test.segments}"
            )
        refuse_too_long(dataset, self._model, test.name)
        batches = in_batches(dataset, self._settings.max_tokens)
        self._chosen[test.name] = choose_depths(self._model, self._classifier, batches, len(dataset))
        return super().translate(test, steps, console)

    def _generate(
        self, test: Subset, search: Mapping[str, Any], output: Path, steps: Steps, console: Console
    ) -> list[str]:
        """Run fairseq-generate once for each depth, on its sentences, and write one file with the output of all."""
        chosen = self._chosen[test.name]
        merged: list[str] = []
        for index, setting in enumerate(self._classifier.settings):
            numbers = [number for number, choice in enumerate(chosen) if choice == index]
            if not numbers:
                continue
            reduced, _, _ = reduce_to_depth(self._checkpoint, self._of_average, DepthRequest.of(setting), steps)
            name = setting_name(setting)
            with tempfile.TemporaryDirectory(prefix="fairseq-sharing-") as folder:
                write_part(self._data.binarized, test.subset, self._data.direction, numbers, Path(folder))
                part = output.with_name(f"{output.name}.{name}")
                some = replace(test, name=f"{test.name} at {name}", segments=len(numbers))
                self._run_generate(some, reduced, Path(folder), search, part, console)
            merged += renumbered(part.read_bytes().decode(), numbers)
            part.unlink()
        write_text(output, "".join(f"{line}\n" for line in merged))
        return read_generated(output, test.segments)


def write_part(binarized: Path, subset: str, languages: Sequence[str], numbers: Sequence[int], folder: Path) -> None:
    """Write the sentences of a binarized subset with some numbers, and the dictionaries, to another folder."""
    from fairseq.data import Dictionary, data_utils, indexed_dataset

    for dictionary in binarized.glob("dict.*.txt"):
        (folder / dictionary.name).symlink_to(dictionary.resolve())
    for lang, name in zip(languages, data_names(subset, list(languages)), strict=True):
        symbols = Dictionary.load(str(binarized / f"dict.{lang}.txt"))
        found = data_utils.load_indexed_dataset(str(binarized / name), symbols)
        if found is None:  # a test set without binarized references
            continue
        builder = indexed_dataset.make_builder(str(folder / f"{name}.bin"), "mmap", len(symbols))
        for number in numbers:
            builder.add_item(found[number])
        builder.finalize(str(folder / f"{name}.idx"))


def renumbered(output: str, numbers: Sequence[int]) -> list[str]:
    """Return the lines of fairseq-generate about sentences, with the numbers of these sentences in the test set.

    Args:
        output: the output for some sentences of a test set.
        numbers: the number of each in the test set.
    """
    found = (re.fullmatch(r"([A-Z]-)(\d+)(\t.*)?", line, re.DOTALL) for line in output.split("\n"))
    return [f"{one[1]}{numbers[int(one[2])]}{one[3] or ''}" for one in found if one]
