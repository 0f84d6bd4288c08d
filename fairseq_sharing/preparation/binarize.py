"""Write the same files as fairseq-preprocess, byte for byte, in memory that does not depend on the number of lines."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy

from fairseq_sharing.files import atomic_write, read_lines, write_text

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # indices 0 to 3 of every fairseq dictionary
_PADDING_FACTOR = 8  # --padding-factor of fairseq-preprocess
_SMALL_DICTIONARY = 65_500  # number of symbols from which fairseq uses four bytes per token (best_fitting_int_dtype)

_INDEX_MAGIC = b"MMIDIDX\x00\x00"
_INDEX_VERSION = 1
_TYPE_CODES = {numpy.dtype(numpy.uint16): 8, numpy.dtype(numpy.uint32): 9}
_BLOCK = 1 << 20  # number of sentences whose index is written at a time


def preprocess_arguments(languages: list[str], tests: list[str]) -> list[str]:
    """Return the arguments of fairseq-preprocess that produce the same files, relative to the data directory.

    Args:
        languages: source and target language codes, or the single code of a language model.
        tests: names of the test sets, which become the subsets test, test1, test2, ...

    Returns:
        The arguments.
    """
    if len(languages) == 1:
        arguments, end = ["--only-source"], f".{languages[0]}"
    else:
        arguments, end = ["--source-lang", languages[0], "--target-lang", languages[1], "--joined-dictionary"], ""
    arguments += ["--trainpref", f"bpe/train{end}", "--validpref", f"bpe/valid{end}"]
    if tests:
        arguments += ["--testpref", ",".join(f"bpe/{name}{end}" for name in tests)]
    return [*arguments, "--destdir", "bin"]


def subset_names(tests: list[str]) -> dict[str, str]:
    """Map the test sets to fairseq's subset names.

    Args:
        tests: names of the test sets in order.

    Returns:
        fairseq's subset per test set: test, test1, test2, ...
    """
    return {name: f"test{number or ''}" for number, name in enumerate(tests)}


def dictionary_names(languages: list[str]) -> list[str]:
    """Return the names of the dictionary files.

    Args:
        languages: as for preprocess_arguments.

    Returns:
        One name per language; dict.txt for a single language.
    """
    return [f"dict.{lang}.txt" for lang in languages] if len(languages) > 1 else ["dict.txt"]


def data_names(subset: str, languages: list[str]) -> list[str]:
    """Return the names of a subset's data files, without the suffixes .bin and .idx.

    Args:
        subset: train, valid, test, test1, ...
        languages: as for preprocess_arguments.

    Returns:
        One name per language.
    """
    return [f"{subset}.{'-'.join(languages)}.{lang}" for lang in languages] if len(languages) > 1 else [subset]


def write_dictionary(counts: Mapping[str, int], paths: list[Path]) -> int:
    """Write the dictionary of a training text.

    Args:
        counts: how often each token occurs.
        paths: files to write, with identical content.

    Returns:
        Number of symbols, excluding fairseq's four special symbols.
    """
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    symbols = {word: count for word, count in ordered if word not in SPECIAL}
    padding = 0
    while (len(SPECIAL) + len(symbols)) % _PADDING_FACTOR:
        symbols.setdefault(f"madeupword{padding:04d}", 0)
        padding += 1
    for path in paths:
        write_text(path, "".join(f"{word} {count}\n" for word, count in symbols.items()))
    return len(symbols)


def read_dictionary(path: Path) -> dict[str, int]:
    """Read the index of each symbol.

    Args:
        path: a dictionary file.

    Returns:
        Indices by symbol, including the special symbols.
    """
    symbols = (*SPECIAL, *(line.rpartition(" ")[0] for line in read_lines(path)))
    return {symbol: number for number, symbol in enumerate(symbols)}


def token_type(size: int) -> numpy.dtype[Any]:
    """Choose the integer type of tokens, as fairseq does.

    Args:
        size: number of symbols in the dictionary, including the special symbols.

    Returns:
        An unsigned type of two or four bytes.
    """
    return numpy.dtype(numpy.uint16 if size < _SMALL_DICTIONARY else numpy.uint32)


def write_index(lengths: Path, kind: numpy.dtype[Any], index: Path) -> None:
    """Write the index of a file in fairseq's mmap format.

    Args:
        lengths: file with the number of tokens of each sentence, four bytes each.
        kind: type of a token.
        index: the ``.idx`` file to write.
    """
    number = lengths.stat().st_size // numpy.dtype(numpy.int32).itemsize
    with atomic_write(index) as file:
        file.write(_INDEX_MAGIC + struct.pack("<QBQ", _INDEX_VERSION, _TYPE_CODES[kind], number))
        for block in _blocks(lengths):
            file.write(block.tobytes())
        start = 0
        for block in _blocks(lengths):
            ends = start + numpy.cumsum(block, dtype=numpy.int64) * kind.itemsize
            file.write(numpy.concatenate(([start], ends[:-1])).astype(numpy.int64).tobytes())
            start = int(ends[-1])


def _blocks(lengths: Path) -> Iterator[numpy.ndarray[Any, Any]]:
    with lengths.open("rb") as file:
        while block := file.read(_BLOCK * numpy.dtype(numpy.int32).itemsize):
            yield numpy.frombuffer(block, numpy.int32)
