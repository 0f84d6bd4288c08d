"""Learn subwords jointly from the training texts of both languages."""

from __future__ import annotations

import importlib
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import atomic_write, read_lines, write_text
from fairseq_sharing.preparation.bpe import read_codes
from fairseq_sharing.preparation.parallel import Workers
from fairseq_sharing.preparation.progress import console, progress
from fairseq_sharing.preparation.settings import SENTENCEPIECE

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
    write_text(output, codes.getvalue())
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
    write_text(output, "".join(f"{line}\n" for line in lines))
    return len(lines) - 1


def learn_sentencepiece(texts: list[Path], subword: Mapping[str, Any], output: Path, lines: int) -> int:
    """Learn a joined unigram model with sentencepiece.

    Args:
        texts: texts, tokenized or not.
        subword: size, the number of pieces in the model, and optionally character_coverage and max_sentence_length.
        output: the model file.
        lines: total number of lines in the texts, for the progress bar.

    Returns:
        Number of pieces in the model.

    Raises:
        SharingError: the texts do not yield that many pieces, have too many different characters, or only lines that
            are too long.
    """
    import sentencepiece

    settings = {**SENTENCEPIECE, **{key: value for key, value in subword.items() if key in SENTENCEPIECE}}
    model, size, counts = io.BytesIO(), subword["size"], Counter[str]()
    sentencepiece.set_random_generator_seed(1)
    sentences = _short_lines(texts, settings["max_sentence_length"], counts)
    with progress("learn sentencepiece", lines) as advance:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_advancing(sentences, advance),
                model_writer=model,
                vocab_size=size,
                model_type="unigram",
                input_sentence_size=_SENTENCEPIECE_SENTENCES,
                shuffle_input_sentence=True,
                minloglevel=2,
                **settings,
            )
        except RuntimeError as error:
            raise SharingError(_explain(str(error), size, settings, counts)) from None
    if counts["long"]:
        console.print(
            f"warning: SentencePiece did not learn from {counts['long']:,} of {counts.total():,} lines, which are "
            f"longer than {settings['max_sentence_length']:,} bytes (--max-sentence-length)",
            style="yellow",
            soft_wrap=True,
        )
    with atomic_write(output) as file:
        file.write(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()


def _short_lines(texts: list[Path], longest: int, counts: Counter[str]) -> Iterator[str]:
    """Read the lines that SentencePiece does not ignore, and count all lines by length: "long" and "short"."""
    for line in (line for text in texts for line in read_lines(text) if line):
        length = "long" if len(line.encode()) > longest else "short"
        counts[length] += 1
        if length == "short":
            yield line


def _explain(message: str, size: int, settings: Mapping[str, Any], counts: Counter[str]) -> str:
    """Explain an error of SentencePiece by the flags of prepare."""
    if not counts["short"]:
        return (
            f"--subword sentencepiece: all {counts['long']:,} lines of the training text are longer than "
            f"{settings['max_sentence_length']:,} bytes; allowed: shorter lines, or a higher --max-sentence-length"
        )
    if found := re.search(r"smaller than required_chars. \d+ vs (\d+)", message):
        return (
            f"--subword-size {size}: the training text has too many different characters; allowed: at least "
            f"{int(found[1]):,} pieces, or a --character-coverage below {settings['character_coverage']:g}"
        )
    if found := re.search(r"Vocabulary size too high .* <= (\d+)", message):
        return f"--subword-size {size}: the training text has too few words; allowed: at most {int(found[1]):,} pieces"
    return f"--subword-size {size}: rejected by sentencepiece: {message.rpartition('] ')[2] or message}"


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
