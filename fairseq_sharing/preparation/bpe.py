"""Apply byte-pair encoding: the merges, and so the subwords, are subword-nmt's; the tokenizers library applies them."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

# Words kept with their subwords before all are forgotten; bounds the memory of a process.
_CACHE_WORDS = 200_000

_UNKNOWN = "<unk>"


class BytePairEncoding:
    """Cut words into the subwords that subword-nmt's apply-bpe cuts them into, several times as fast.

    Args:
        codes: file of merge operations in the format of subword-nmt.
    """

    def __init__(self, codes: Path):
        # Processes share the work; threads of the library would only take turns with them.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from subword_nmt.apply_bpe import BPE
        from tokenizers import Tokenizer, models

        with codes.open(encoding="utf-8", newline="\n") as file:
            self._reference: Any = BPE(file)
        merges = sorted(self._reference.bpe_codes, key=self._reference.bpe_codes.__getitem__)
        symbols = dict.fromkeys([_UNKNOWN, *(symbol for a, b in merges for symbol in (a, b, a + b))])
        vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
        self._tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=_UNKNOWN, end_of_word_suffix="</w>"))
        self._cache: dict[str, str] = {}

    def segment(self, text: str) -> str:
        """Cut the words of a text into subwords.

        Args:
            text: words separated by single spaces, in lines.

        Returns:
            The same lines with "@@" after each subword that is not the end of a word.
        """
        lines = [line.split(" ") for line in text.split("\n")]
        new = {word for line in lines for word in line}.difference(self._cache)
        if len(self._cache) + len(new) > _CACHE_WORDS:
            self._cache.clear()
            new = {word for line in lines for word in line}
        self._learn(list(new))
        return "\n".join([" ".join([self._cache[word] for word in line]) for line in lines])

    def _learn(self, words: list[str]) -> None:
        for word, encoding in zip(words, self._tokenizer.encode_batch(words), strict=True):
            if len(set(itertools.pairwise(word))) < len(word) - 1:
                # Where a pair of characters repeats, subword-nmt merges all of its places before it looks for the next
                # pair, the library one place after the other; for other words there is no such difference.
                self._cache[word] = self._reference.segment(word)
            else:
                # Offsets, not symbols: a character that no merge has is a symbol without name.
                self._cache[word] = "@@ ".join([word[start:end] for start, end in encoding.offsets])
