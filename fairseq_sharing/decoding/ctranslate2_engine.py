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

_MAX_TOKENS = 2048  # a batch


def import_ctranslate2() -> Any:
    """Import CTranslate2.

    Raises:
        SharingError: it is not installed.
    """
    try:
        import ctranslate2
    except ImportError:
        raise SharingError(
            "CTranslate2 is not installed; install it with: pip install 'fairseq-sharing[ctranslate2]'"
        ) from None
    return ctranslate2


def refuse_forked() -> None:
    """Refuse to work in a process that was forked after a model was loaded.

    Raises:
        SharingError: this is such a process, where CTranslate2 would wait for threads that the fork left behind.
    """
    if inherited():
        raise SharingError(
            f"process {os.getpid()} was forked after a model had been loaded, CTranslate2 cannot work in it; allowed: "
            "threads, processes of multiprocessing's spawn context, or to load the model only after the fork"
        )


def batch_tokens(sentences: Sequence[Sequence[str]], threads: int) -> int:
    """Choose the tokens of a batch, small enough that every processor gets one.

    Batches run side by side, each in one thread: that is faster than one after the other in several, since the threads
    of one small batch wait for each other longer than they work.

    Args:
        sentences: the subwords of each.
        threads: number of processors.
    """
    tokens = sum(map(len, sentences))
    return max(1, min(_MAX_TOKENS, -(-tokens // threads)))


class CTranslate2Engine:
    """Translates subwords with an exported model.

    Args:
        folder: made by ``fairseq-sharing export --to ctranslate2``.
        limits: subwords of a source and a target at most, by side.
        quantization: type of the arithmetic; None for that of the stored weights.
        threads: processors to use.
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
                f"--quantization {quantization} is not for this {device}; allowed: {', '.join(supported)}"
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
            raise SharingError(f"{folder}: CTranslate2 cannot read it ({str(error)[:200]})") from error
        _engines.add(self)

    @property
    def max_source(self) -> int:
        """Subwords of a source that the model reads, beside the sentence's end."""
        return self._limits["source"]

    def translate(self, sentences: Sequence[Sequence[str]], search: Search) -> Iterator[tuple[int, list[Hypothesis]]]:
        """Translate sentences.

        Args:
            sentences: the subwords of each, at least one and at most ``max_source``.
            search: settings.

        Yields:
            The number of a sentence and its hypotheses.

        Raises:
            SharingError: this process was forked after the model had been loaded.
        """
        refuse_forked()
        found = self._translator.translate_batch(
            sentences,
            max_batch_size=search.max_tokens or batch_tokens(sentences, self._threads),
            batch_type="tokens",
            asynchronous=True,
            beam_size=search.beam,
            num_hypotheses=search.nbest,
            length_penalty=search.lenpen,
            max_input_length=0,
            max_decoding_length=min(search.max_len_b, self._limits["target"]),
            return_scores=True,
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
        """Keep the translator from ever being destroyed: its destructor waits for its threads."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._translator))


_engines: weakref.WeakSet[CTranslate2Engine] = weakref.WeakSet()


def _abandon_engines() -> None:
    """Let a forked process end, although the threads of its engines stayed behind in the other."""
    for engine in _engines:
        engine.abandon()


os.register_at_fork(after_in_child=_abandon_engines)
