"""Translate each sentence at the depth that a classifier chooses, sentences of equal depth together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fairseq_sharing.decoding.fairseq_engine import FairseqEngine
from fairseq_sharing.decoding.model_files import ModelFiles
from fairseq_sharing.decoding.search import Hypothesis, Search
from fairseq_sharing.depths.settings import Setting, setting_name
from fairseq_sharing.sentence_depth.file import check_fit, classifier_file, read_classifier
from fairseq_sharing.sentence_depth.model import check_model
from fairseq_sharing.sentence_depth.states import choose_depths


class SentenceDepthEngine:
    """Translates subwords with one model, each sentence at its own depth.

    The translations of the sentences of one depth are those of the model of this depth for these sentences. Caches
    belong to a batch, and the depth changes only between batches.

    Args:
        files: one checkpoint with a classifier.
        engine: the engine of the checkpoint; its model computes the input of the classifier.
        engine_at: returns an engine that translates at a depth; None to change the depth of the model of ``engine``.
    """

    def __init__(self, files: ModelFiles, engine: FairseqEngine, engine_at: Callable[[Setting], Any] | None = None):
        (checkpoint,) = files.checkpoints
        (self._model,) = engine.models
        check_model(self._model, engine.task, files.name)
        self._classifier = read_classifier(checkpoint)
        check_fit(self._classifier, self._model, classifier_file(checkpoint))
        self._engine, self._engine_at = engine, engine_at or self._use_depth
        self.chosen: Counter[str] = Counter()  # number of sentences so far by the name of their depth

    @property
    def max_source(self) -> int:
        """Maximum number of subwords of a source, without the end of the sentence."""
        return self._engine.max_source

    def choose(self, sentences: Sequence[Sequence[str]], search: Search) -> list[int]:
        """Return the index of the depth of each sentence; the arguments are those of ``translate``."""
        return choose_depths(self._model, self._classifier, self._engine.batches(sentences, search), len(sentences))

    def translate(self, sentences: Sequence[Sequence[str]], search: Search) -> Iterator[tuple[int, list[Hypothesis]]]:
        """Translate sentences. Arguments, results and errors are those of ``FairseqEngine.translate``."""
        chosen = self.choose(sentences, search)
        for index, setting in enumerate(self._classifier.settings):
            numbers = [number for number, choice in enumerate(chosen) if choice == index]
            if not numbers:
                continue
            self.chosen[setting_name(setting)] += len(numbers)
            for number, hypotheses in self._engine_at(setting).translate([sentences[n] for n in numbers], search):
                yield numbers[number], hypotheses

    def _use_depth(self, setting: Setting) -> FairseqEngine:
        self._model.use_depth(setting)
        return self._engine
