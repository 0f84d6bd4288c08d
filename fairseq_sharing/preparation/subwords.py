"""Learn subwords jointly from the training texts of both languages."""

from __future__ import annotations

import importlib
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import atomic_write, read_lines
from fairseq_sharing.preparation.bpe import read_codes
from fairseq_sharing.preparation.parallel import Workers
from fairseq_sharing.preparation.progress import progress

Item = TypeVar("Item")

MODEL_FILES = {"bpe": "codes.bpe", "sentencepiece": "sentencepiece.model"}
PACKAGES = {"bpe": "subword-nmt", "sentencepiece": "sentencepiece"}

# Number of random sentences that sentencepiece learns from. All are in memory, and more hardly change the model.
_SENTENCEPIECE_SENTENCES = 2_000_000

_PART = 1 << 23  # bytes of a file per work item
_BLOCK = 5000  # number of lines split into words at a time


def learn_bpe(texts: list[Path], size: int, output: Path, pool: Workers) -> int:
    """Learn a joined byte-pair encoding with subword-nmt.

    Args:
        texts: tokenized texts, read completely; only the word counts are in memory.
        size: number of merge operations to learn.
        output: file of the merge operations.
        pool: processes that count the words.

    Returns:
        Number of merge operations learned; fewer than requested if no more pair occurs twice.

    Raises:
        SharingError: the texts contain nothing to learn from.
    """
    # The package also binds the name learn_bpe to the function.
    learner: Any = importlib.import_module("subword_nmt.learn_bpe")
    counts = count_words("count words", texts, pool)
    if not any(len(word) > 1 for word in counts):
        raise SharingError(f"{texts[0]}: no words to learn subwords from; use --subword none")
    vocabulary = (f"{word} {count}" for word, count in counts.items())
    codes = io.StringIO()
    with progress("learn BPE", size, "merges") as advance:
        shown, learner.tqdm = learner.tqdm, lambda steps: _advancing(steps, advance)
        try:
            learner.learn_bpe(vocabulary, codes, size, is_dict=True)
        finally:
            learner.tqdm = shown
    merges = codes.getvalue().count("\n") - 1
    if not merges:
        raise SharingError(f"{texts[0]}: no two characters occur together twice; use more text or --subword none")
    with atomic_write(output) as file:
        file.write(codes.getvalue().encode("utf-8"))
    return merges


def copy_bpe(codes: Path, output: Path) -> int:
    """Copy existing merge operations.

    Args:
        codes: file of merge operations in the format of subword-nmt.
        output: the copy to write.

    Returns:
        Number of merge operations.

    Raises:
        SharingError: the file has another format.
    """
    lines = read_codes(codes)
    if lines[0] != "#version: 0.2":
        raise SharingError(f"{codes}: merges of another version of subword-nmt; allowed: '#version: 0.2' in line 1")
    with atomic_write(output) as file:
        file.write("".join(f"{line}\n" for line in lines).encode())
    return len(lines) - 1


def learn_sentencepiece(texts: list[Path], size: int, output: Path, lines: int) -> int:
    """Learn a joined unigram model with sentencepiece.

    Args:
        texts: texts, tokenized or not.
        size: number of pieces in the model.
        output: the model file.
        lines: total number of lines in the texts, for the progress bar.

    Returns:
        Number of pieces in the model.

    Raises:
        SharingError: the texts do not yield that many pieces, or have too many different characters.
    """
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.set_random_generator_seed(1)
    sentences = (line for text in texts for line in read_lines(text) if line)
    with progress("learn sentencepiece", lines) as advance:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_advancing(sentences, advance),
                model_writer=model,
                vocab_size=size,
                model_type="unigram",
                character_coverage=1.0,
                input_sentence_size=_SENTENCEPIECE_SENTENCES,
                shuffle_input_sentence=True,
                minloglevel=2,
            )
        except RuntimeError as error:
            reason = str(error).rpartition("] ")[2] or str(error)
            raise SharingError(f"--subword-size {size}: rejected by sentencepiece: {reason}") from None
    with atomic_write(output) as file:
        file.write(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()


def count_words(title: str, texts: list[Path], pool: Workers) -> Counter[str]:
    """Count the words in texts.

    Args:
        title: label of the progress bar.
        texts: files with words separated by single spaces or line feeds.
        pool: the processes; each reads separate parts of the files.

    Returns:
        The number of occurrences of each word.
    """
    sizes = [(text, text.stat().st_size) for text in texts]
    parts = [(text, start) for text, size in sizes for start in range(0, size, _PART)]
    counts: Counter[bytes] = Counter()
    with progress(title, sum(size for _, size in sizes), "bytes") as advance:
        for part_counts, size in pool.map(_count_part, parts):
            counts.update(part_counts)
            advance(size)
    return Counter({word.decode(): count for word, count in counts.items()})


def _count_part(part: tuple[Path, int]) -> tuple[Counter[bytes], int]:
    """Count the words of the lines that start in a part of a file; return the counts and the size in bytes."""
    path, start = part
    counts: Counter[bytes] = Counter()
    with path.open("rb") as file:
        if start:
            file.seek(start - 1)
            file.readline()
        begun = position = file.tell()
        block: list[bytes] = []
        for line in file:
            if position >= start + _PART:
                break
            position += len(line)
            block.append(line)
            if len(block) == _BLOCK:
                counts.update(b"".join(block).split())
                block.clear()
        counts.update(b"".join(block).split())
    return counts, position - begun


def _advancing(items: Iterable[Item], advance: Callable[[int], None]) -> Iterator[Item]:
    for item in items:
        yield item
        advance(1)
