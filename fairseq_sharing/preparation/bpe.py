"""Apply byte-pair encoding: the merges, and so the subwords, are subword-nmt's; the tokenizers library applies them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

# Words kept with their subwords before all are forgotten; bounds the memory of a process.
_CACHE_WORDS = 200_000

# What the library calls a character that no merge has. Merges are separated by spaces, so no symbol of theirs is one.
_UNKNOWN = " "


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
        self._same = self._reference.version == (0, 2) and same_in_any_order(merges)
        symbols = dict.fromkeys([_UNKNOWN, *(symbol for a, b in merges for symbol in (a, b, a + b))])
        vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
        self._tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=_UNKNOWN, end_of_word_suffix="</w>"))
        self._cache: dict[str, str] = {}

    def segment(self, text: str) -> str:
        """Cut the words of a text into subwords.

        Args:
            text: words separated by spaces, in lines.

        Returns:
            The same lines with "@@" after each subword that is not the end of a word.
        """
        lines = [[word for word in line.strip("\r").split(" ") if word] for line in text.split("\n")]
        new = {word for line in lines for word in line}.difference(self._cache)
        if len(self._cache) + len(new) > _CACHE_WORDS:
            self._cache.clear()
            new = {word for line in lines for word in line}
        self._learn(list(new))
        return "\n".join([" ".join([self._cache[word] for word in line]) for line in lines])

    def _learn(self, words: list[str]) -> None:
        if not self._same:
            self._cache.update((word, self._reference.segment(word)) for word in words)
            return
        for word, encoding in zip(words, self._tokenizer.encode_batch(words), strict=True):
            # Offsets, not symbols: a character that no merge has is a symbol without name.
            self._cache[word] = "@@ ".join([word[start:end] for start, end in encoding.offsets])


def same_in_any_order(merges: list[tuple[str, str]]) -> bool:
    """Tell whether it is all the same if the places of a pair in a word are merged at once or one after the other.

    subword-nmt merges all places of the first pair of the list before it looks again, the tokenizers library looks
    again after each. That makes a difference only where the new symbol is part of a pair from further up the list,
    which merges in the order they were learned in have only if a symbol was made in two ways.

    Args:
        merges: pairs of symbols in the order of the list.

    Returns:
        False when the new symbol of a pair is in a pair before it.
    """
    used: set[str] = set()
    for one, other in merges:
        if one + other in used:
            return False
        used |= {one, other}
    return True
