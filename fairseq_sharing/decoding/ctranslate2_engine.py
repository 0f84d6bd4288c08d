"""Translate with an exported model in CTranslate2."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fairseq_sharing.decoding.forked import inherited
from fairseq_sharing.decoding.search import Hypothesis, Search
from fairseq_sharing.errors import SharingError

# Source subwords per batch. On CPUs, smaller batches are faster (benchmarks/decoding/speed.py).
_BATCH_TOKENS = {"cuda": 2048, "cpu": 512, "cpu int8": 256}


def import_ctranslate2() -> Any:
    """Import CTranslate2.

    Raises:
        SharingError: CTranslate2 is not installed.
    """
    try:
        import ctranslate2
    except ImportError:
        raise SharingError(
            "CTranslate2 is not installed; install it with: pip install 'fairseq-sharing[ctranslate2]'"
        ) from None
    return ctranslate2


def refuse_forked() -> None:
    """Reject calls in a process that was forked after a model had been loaded.

    Raises:
        SharingError: this is such a process; CTranslate2 would wait for threads that do not exist in it.
    """
    if inherited():
        raise SharingError(
            f"process {os.getpid()} was forked after a model had been loaded, so CTranslate2 cannot run in it; "
            "allowed: threads, multiprocessing's spawn context, or loading the model only after the fork"
        )


def batch_tokens(sentences: Sequence[Sequence[str]], threads: int, most: int) -> int:
    """Choose the number of tokens per batch, small enough that every thread gets a batch.

    Batches run in parallel, one thread each. This is faster than several threads per batch, because the threads of a
    small batch spend more time waiting for each other than computing.

    Args:
        sentences: the subwords of each sentence.
        threads: number of threads.
        most: the result is at most this number.
    """
    tokens = sum(map(len, sentences))
    return max(1, min(most, -(-tokens // threads)))


class CTranslate2Engine:
    """Translates subwords with an exported model.

    Args:
        folder: exported with ``fairseq-sharing export --to ctranslate2``.
        limits: maximum number of subwords of a source and of a target, by side.
        quantization: type of the arithmetic; None for the type of the stored weights.
        threads: number of threads.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, folder: Path, limits: dict[str, int], quantization: str | None, threads: int, device: str):
        library = import_ctranslate2()
        refuse_forked()
        if device == "cuda" and not library.get_cuda_device_count():
            raise SharingError("--device cuda: CTranslate2 finds no GPU; allowed: cpu")
        supported = sorted(library.get_supported_compute_types(device))
        if quantization is not None and quantization not in supported:
            raise SharingError(
                f"--quantization {quantization} is not supported on this {device}; allowed: {', '.join(supported)}"
            )
        self._limits, self._threads = limits, 1 if device == "cuda" else threads
        try:
            self._translator = library.Translator(
                str(folder),
                device=device,
                compute_type=quantization or "default",
                inter_threads=self._threads,
                intra_threads=1,
                max_queued_batches=-1,
            )
        except RuntimeError as error:  # a damaged file
            raise SharingError(
                f"{folder}: CTranslate2 cannot read the model ({str(error)[:200]}); export the model again"
            ) from error
        int8 = " int8" if device == "cpu" and self._translator.compute_type.startswith("int8") else ""
        self._batch_tokens = _BATCH_TOKENS[device + int8]
        _engines.add(self)

    @property
    def max_source(self) -> int:
        """Maximum number of subwords of a source, without the end of the sentence."""
        return self._limits["source"]

    @property
    def max_target(self) -> int:
        """Maximum number of subwords of a translation, without the end of the sentence."""
        return self._limits["target"]

    def translate(self, sentences: Sequence[Sequence[str]], search: Search) -> Iterator[tuple[int, list[Hypothesis]]]:
        """Translate sentences.

        Args:
            sentences: the subwords of each sentence, at least one and at most ``max_source``.
            search: settings.

        Yields:
            The index of a sentence and its hypotheses.

        Raises:
            SharingError: this process was forked after the model had been loaded.
        """
        refuse_forked()
        sampling = (
            {} if search.temperature is None else {"sampling_topk": 0, "sampling_temperature": search.temperature}
        )
        found = self._translator.translate_batch(
            sentences,
            max_batch_size=search.max_tokens or batch_tokens(sentences, self._threads, self._batch_tokens),
            batch_type="tokens",
            asynchronous=True,
            beam_size=search.beam,
            num_hypotheses=search.nbest,
            length_penalty=search.lenpen,
            max_input_length=0,
            max_decoding_length=min(search.max_len_b, self.max_target),
            return_scores=True,
            **sampling,
        )
        for sentence, result in enumerate(found):
            translated = result.result()
            yield (
                sentence,
                [
                    Hypothesis(" ".join(words), score, len(words))
                    for words, score in zip(translated.hypotheses, translated.scores, strict=True)
                ],
            )

    def abandon(self) -> None:
        """Prevent the translator from being destroyed: its destructor would wait for its threads."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._translator))


_engines: weakref.WeakSet[CTranslate2Engine] = weakref.WeakSet()


def _abandon_engines() -> None:
    """Let a forked process exit, although it does not have the threads of its engines."""
    for engine in _engines:
        engine.abandon()


os.register_at_fork(after_in_child=_abandon_engines)
