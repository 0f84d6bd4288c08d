"""Translate plain sentences: prepare them like the training data, search, and detokenize the hypotheses."""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from fairseq_sharing.decoding.at_depth import at_depth, refuse_several
from fairseq_sharing.decoding.ctranslate2_engine import CTranslate2Engine
from fairseq_sharing.decoding.model_files import ModelFiles, find_model
from fairseq_sharing.decoding.search import QUANTIZATIONS, Hypothesis, Search
from fairseq_sharing.depths.settings import AUTO, DepthRequest, Setting, setting_name
from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.settings import ENGINES
from fairseq_sharing.experiment.environment import cpu_cores, torch_threads
from fairseq_sharing.preparation.text import Pipeline
from fairseq_sharing.terminal import Console

logger = logging.getLogger(__name__)


class Translator:
    """Translates plain sentences with a trained or an exported model.

    Args:
        model: a run directory, a checkpoint, several (``a.pt:b.pt``), or the output of ``fairseq-sharing export``.
        engine: ``fairseq`` or ``ctranslate2``; None for ``ctranslate2`` with an exported model, else ``fairseq``.
            ``ctranslate2`` exports a run or checkpoint to a temporary folder first.
        quantization: type of CTranslate2's arithmetic, such as ``int8``; None for the type of the stored weights.
        data: prepared data directory, if it differs from the model's training data.
        threads: number of threads. None uses all cores with CTranslate2, whose threads do not wait for each other; with
            fairseq it uses OMP_NUM_THREADS, or the number of idle cores.
        device: ``cpu`` or ``cuda``.
        prepared: read and write subwords instead of plain text.
        depth: number of layers to run, of a model trained for several depths; None for all; ``auto`` for a depth per
            sentence, chosen by the model's classifier. A ``DepthRequest`` sets the depth of each stack.

    Raises:
        SharingError: there is no such model, or it does not support the options.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        engine: str | None = None,
        quantization: str | None = None,
        data: str | os.PathLike[str] | None = None,
        threads: int | None = None,
        device: str = "cpu",
        prepared: bool = False,
        depth: int | str | DepthRequest | None = None,
    ):
        if engine not in (None, *ENGINES):
            raise SharingError(f"--engine must be one of {', '.join(ENGINES)}, got {engine!r}")
        if quantization not in (None, *QUANTIZATIONS):
            raise SharingError(f"--quantization must be one of {', '.join(QUANTIZATIONS)}, got {quantization!r}")
        if device not in ("cpu", "cuda"):
            raise SharingError(f"--device must be cpu or cuda, got {device!r}")
        if threads is not None and threads < 1:
            raise SharingError(f"--threads must be at least 1, got {threads}")
        request = _request(depth)
        found = find_model(os.fspath(model), Path(data) if data is not None else None, Console(stderr=True))
        self._temporary = ExitStack()  # folders that are kept as long as the translator
        self._per_sentence = request.per_sentence
        if request.per_sentence:
            refuse_several(found)
            self._files = found
        else:
            self._files = self._temporary.enter_context(at_depth(found, request))
        self.engine = engine or ("ctranslate2" if self._files.exported else "fairseq")
        if self.engine == "fairseq" and self._files.exported:
            raise SharingError(
                f"--engine fairseq: {model} is a CTranslate2 model; allowed: a run directory or a checkpoint"
            )
        if self.engine == "fairseq" and quantization is not None:
            raise SharingError(f"--quantization {quantization} requires --engine ctranslate2")
        self._quantization, self._device, self._threads = quantization, device, threads
        self._pipeline = None if prepared else _pipeline(self._files)
        if request.per_sentence:
            _ = self._engine  # whose errors concern the model, not a sentence

    def translate(self, sentences: Iterable[str], **search: Any) -> list[str]:
        """Translate sentences.

        Args:
            sentences: plain text, one sentence each; an empty sentence has an empty translation.
            search: settings of ``search.Search``: beam, lenpen, max_len_b, max_tokens.

        Returns:
            The best translation of each sentence, in the same order.

        Raises:
            SharingError: an invalid setting.
        """
        return [found[0].text for found in self.hypotheses(sentences, Search(**search))]

    def hypotheses(
        self, sentences: Iterable[str], search: Search, advance: Callable[[int], None] | None = None, first: int = 1
    ) -> list[list[Hypothesis]]:
        """Return the ``search.nbest`` best translations of each sentence.

        Args:
            sentences: plain text, one sentence each.
            search: settings.
            advance: called with the number of sentences completed since the last call.
            first: number of the first sentence, for messages.

        Returns:
            The translations of each sentence, best first; at least one.

        Raises:
            SharingError: a sentence cannot be encoded as UTF-8, or scores are NaN or infinite.
        """
        if isinstance(sentences, str):
            raise SharingError("sentences must be a list of str, got one str")
        tokens = [self._prepare(sentence, number) for number, sentence in enumerate(sentences, first)]
        asked = [number for number, words in enumerate(tokens) if words]
        # Skip empty sentences, for which a model would produce words.
        found = [[Hypothesis("", 0.0, 0)] for _ in tokens]
        if advance is not None:
            advance(len(tokens) - len(asked))
        if asked:
            for index, hypotheses in self._engine.translate([tokens[number] for number in asked], search):
                if not hypotheses or not all(math.isfinite(hypothesis.score) for hypothesis in hypotheses):
                    raise SharingError(
                        f"sentence {first + asked[index]}: the model's scores are NaN or infinite; "
                        "allowed: a model whose log-probabilities are finite"
                    )
                self._warn_of_cut(hypotheses[0], first + asked[index], search)
                found[asked[index]] = [self._finish(hypothesis) for hypothesis in hypotheses]
                if advance is not None:
                    advance(1)
        return found

    def __reduce__(self) -> NoReturn:
        """Refuse to be sent to another process, which could not use the engine's threads."""
        raise SharingError("a Translator cannot be sent to another process; allowed: create it there, or use threads")

    @property
    def chosen_depths(self) -> dict[str, int]:
        """The number of sentences translated so far at each depth; empty without a depth per sentence."""
        return dict(self._engine.chosen) if self._per_sentence else {}

    @cached_property
    def _engine(self) -> Any:
        if self._per_sentence:
            from fairseq_sharing.decoding.sentence_depth import SentenceDepthEngine

            engine_at = self._ctranslate2_at() if self.engine == "ctranslate2" else None
            return SentenceDepthEngine(self._files, self._fairseq(), engine_at)
        return self._ctranslate2(self._files) if self.engine == "ctranslate2" else self._fairseq()

    def _fairseq(self) -> Any:
        from fairseq_sharing.decoding.fairseq_engine import FairseqEngine

        return FairseqEngine(self._files, self._threads or torch_threads(), self._device)

    def _ctranslate2_at(self) -> Callable[[Setting], CTranslate2Engine]:
        """Return a function that exports the model at a depth when the depth is first chosen."""
        engines: dict[str, CTranslate2Engine] = {}

        def engine_at(setting: Setting) -> CTranslate2Engine:
            name = setting_name(setting)
            if name not in engines:
                with at_depth(self._files, DepthRequest.of(setting)) as files:
                    engines[name] = self._ctranslate2(files)
            return engines[name]

        return engine_at

    def _ctranslate2(self, files: ModelFiles) -> CTranslate2Engine:
        if not files.exported:
            from fairseq_sharing.decoding.ctranslate2_export import export

            folder = self._temporary.enter_context(tempfile.TemporaryDirectory(prefix="fairseq-sharing-"))
            exported = export(files, Path(folder) / "model", card=False)
            files = find_model(str(exported.path), None, Console(stderr=True))
        assert files.exported is not None
        assert files.max_tokens is not None
        threads = self._threads or cpu_cores()
        return CTranslate2Engine(files.exported, files.max_tokens, self._quantization, threads, self._device)

    def _prepare(self, sentence: str, number: int) -> list[str]:
        try:
            sentence.encode()
        except UnicodeEncodeError as error:
            raise SharingError(f"sentence {number}: not Unicode text ({error.reason})") from None
        words = (sentence if self._pipeline is None else self._pipeline.encode(sentence)).split()
        limit = self._engine.max_source
        if len(words) > limit:
            logger.warning(f"sentence {number}: {len(words)} subwords; the model reads only the first {limit}")
        return words[:limit]

    def _warn_of_cut(self, hypothesis: Hypothesis, number: int, search: Search) -> None:
        if hypothesis.num_tokens >= search.max_len_b:
            logger.warning(f"sentence {number}: translation cut off at --max-len-b ({search.max_len_b} subwords)")

    def _finish(self, hypothesis: Hypothesis) -> Hypothesis:
        if self._pipeline is None:
            return hypothesis
        return Hypothesis(self._pipeline.decode(hypothesis.text), hypothesis.score, hypothesis.num_tokens)


def _request(depth: int | str | DepthRequest | None) -> DepthRequest:
    if isinstance(depth, DepthRequest):
        return depth
    if isinstance(depth, str) and depth != AUTO:
        raise SharingError(f"depth must be a number of layers or {AUTO!r}, got {depth!r}")
    return DepthRequest(per_sentence=True) if isinstance(depth, str) else DepthRequest(depth)


def _pipeline(files: ModelFiles) -> Pipeline:
    if files.manifest is None:
        raise SharingError(
            f"{files.name}: no manifest.json with its text preparation; give the prepared data directory with --data, "
            "or translate subwords with --prepared"
        )
    return Pipeline.from_manifest(files.manifest)
