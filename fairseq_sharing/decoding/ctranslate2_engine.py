"""Translate with an exported model in CTranslate2."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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


def divide_threads(sentences: int, threads: int) -> tuple[int, int]:
    """Divide processors between batches that run side by side and the threads of each batch.

    Side by side is faster than together, and the threads of one small batch wait for each other longer than they work.

    Args:
        sentences: number of sentences to translate.
        threads: number of processors.

    Returns:
        Batches at a time, and threads of each.
    """
    return max(1, min(sentences, threads)), 1


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
        self._library = import_ctranslate2()
        if device == "cuda" and not self._library.get_cuda_device_count():
            raise SharingError("--device cuda: CTranslate2 finds no GPU; allowed: cpu")
        supported = sorted(self._library.get_supported_compute_types(device))
        if quantization is not None and quantization not in supported:
            raise SharingError(
                f"--quantization {quantization} is not for this {device}; allowed: {', '.join(supported)}"
            )
        self._folder, self._limits, self._threads, self._device = folder, limits, threads, device
        self._compute_type = quantization or "default"
        self._loaded: tuple[tuple[int, int], Any] | None = None

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
        """
        batches, threads = (1, 1) if self._device == "cuda" else divide_threads(len(sentences), self._threads)
        tokens = sum(map(len, sentences))
        found = self._translator(batches, threads).translate_batch(
            sentences,
            # Small enough that every processor gets a batch.
            max_batch_size=search.max_tokens or max(1, min(_MAX_TOKENS, -(-tokens // batches))),
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

    def _translator(self, batches: int, threads: int) -> Any:
        if self._loaded is None or self._loaded[0] != (batches, threads):
            self._loaded = None
            try:
                translator = self._library.Translator(
                    str(self._folder),
                    device=self._device,
                    compute_type=self._compute_type,
                    inter_threads=batches,
                    intra_threads=threads,
                    max_queued_batches=-1,
                )
            except RuntimeError as error:  # a damaged file
                raise SharingError(f"{self._folder}: CTranslate2 cannot read it ({str(error)[:200]})") from error
            self._loaded = (batches, threads), translator
        return self._loaded[1]
