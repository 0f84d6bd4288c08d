"""Apply the BPE merges of subword-nmt with the tokenizers library, with identical results."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import Any

from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import read_lines

# Maximum number of cached words per process; a full cache is cleared.
_CACHE_WORDS = 200_000

# The library's symbol for characters that are in no merge. Merges are separated by spaces, so none contains a space.
_UNKNOWN = " "

_FORMAT = "'#version: 0.2', then two symbols per line"


def read_codes(codes: Path) -> list[str]:
    """Read a file of merge operations, for which subword-nmt would end the process if it is malformed.

    Args:
        codes: the file.

    Returns:
        Its lines: the version, which files of subword-nmt before 0.2 lack, then the merges.

    Raises:
        SharingError: the file has another format or contains no merges.
    """
    lines = list(read_lines(codes))
    first = 1 if re.fullmatch(r"#version: \d+\.\d+", (lines or [""])[0]) else 0
    for number, line in enumerate(lines[first:], start=first + 1):
        if len(line.split(" ")) != 2 or not all(line.split(" ")) or line != line.strip("\r"):
            raise SharingError(f"{codes}: not merges of subword-nmt (line {number}); allowed: {_FORMAT}")
    if len(lines) <= first:
        raise SharingError(f"{codes}: contains no merges; allowed: {_FORMAT}")
    return lines


class BytePairEncoding:
    """Split words into the same subwords as subword-nmt's apply-bpe, several times as fast.

    Args:
        codes: file of merge operations in the format of subword-nmt.

    Raises:
        SharingError: see `read_codes`.
    """

    def __init__(self, codes: Path):
        # The work is already distributed over processes; the library's threads would only compete with them.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from subword_nmt.apply_bpe import BPE
        from tokenizers import Tokenizer, models

        self._reference: Any = BPE(io.StringIO("\n".join(read_codes(codes))))
        merges = sorted(self._reference.bpe_codes, key=self._reference.bpe_codes.__getitem__)
        self._same = self._reference.version == (0, 2) and same_in_any_order(merges)
        symbols = dict.fromkeys([_UNKNOWN, *(symbol for a, b in merges for symbol in (a, b, a + b))])
        vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
        self._tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=_UNKNOWN, end_of_word_suffix="</w>"))
        self._cache: dict[str, str] = {}

    def segment(self, text: str) -> str:
        """Split the words of a text into subwords.

        Args:
            text: lines of words separated by spaces.

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
            # Use offsets instead of symbols, because all characters without a merge have the same symbol.
            self._cache[word] = "@@ ".join([word[start:end] for start, end in encoding.offsets])


def same_in_any_order(merges: list[tuple[str, str]]) -> bool:
    """Return whether merging all occurrences of a pair at once or one by one gives the same subwords.

    subword-nmt merges all occurrences of the best pair in a word before it searches again. The tokenizers library
    searches after every merge. The results differ only if a new symbol is part of an earlier pair in the list. With
    merges in the order of learning, this happens only if a symbol can be produced in two ways.

    Args:
        merges: pairs of symbols in list order.

    Returns:
        False if the new symbol of a pair is part of an earlier pair.
    """
    used: set[str] = set()
    for one, other in merges:
        if one + other in used:
            return False
        used |= {one, other}
    return True
